"""What looks at things or proposes them: each tool with its words beside it."""
