"""The ML project: predicts the progression of diabetes. It reads and writes files only; see docs/project.md."""
