//! Columns of text aligned for a terminal.

use std::fmt;

use console::measure_text_width;

/// A heading per column and rows of cells; a heading that starts with `>` aligns its column to the right.
pub struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headings: &[&str]) -> Self {
        let right = headings.iter().map(|heading| heading.starts_with('>')).collect();
        Self { right, rows: vec![headings.iter().map(|heading| heading.trim_start_matches('>').to_string()).collect()] }
    }

    /// Adds a row, one cell per column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether no row was added.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell_width = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| measure_text_width(cell));
        let widths: Vec<usize> =
            (0..self.right.len()).map(|column| self.rows.iter().map(|row| cell_width(row, column)).max().unwrap_or(0)).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - measure_text_width(cell));
                let (before, after) = if self.right[column] { (padding.as_str(), "") } else { ("", padding.as_str()) };
                line += &format!("{}{before}{cell}{after}", if column == 0 { "" } else { "  " });
            }
            write!(f, "{}{}", if index == 0 { "" } else { "\n" }, line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_their_width() {
        let mut table = Table::new(&["file", ">tokens"]);
        table.row(["a.txt".into(), "12".into()]);
        table.row(["Übung.txt".into(), "1,234,567".into()]);
        assert_eq!(table.to_string(), "file          tokens\na.txt             12\nÜbung.txt  1,234,567");
    }
}
