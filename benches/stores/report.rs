//! The tables, in Markdown, and which budgets are not met.

use super::support::measuring;

#[derive(Default)]
pub(crate) struct Report {
    tables: Vec<Table>,
    met: usize,
    not_met: Vec<String>,
    notes: Vec<String>,
}

struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Report {
    pub(crate) fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>) {
        let head = head.iter().map(|&cell| cell.to_owned()).collect();
        self.tables.push(Table { head, rows });
    }

    pub(crate) fn budget(&mut self, what: &str, measured: f64, most: f64) {
        match measured <= most {
            true => self.met += 1,
            false => {
                let line = format!("- {what}: {measured:.2}, and the budget is {most:.1}");
                self.not_met.push(line);
            }
        }
    }

    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub(crate) fn print(&self) {
        for table in &self.tables {
            table.print();
        }
        self.notes.iter().for_each(|note| println!("{note}"));
        println!();
        // A trial run says nothing of them.
        if measuring() {
            println!(
                "Budgets: {} are met, {} are not.",
                self.met,
                self.not_met.len()
            );
            self.not_met.iter().for_each(|line| println!("{line}"));
        }
    }
}

impl Table {
    fn print(&self) {
        let width = |column: usize| {
            let cells = std::iter::once(&self.head).chain(&self.rows);
            let widths = cells.map(|row| row[column].chars().count());
            widths.max().unwrap_or_default().max(3)
        };
        let line = |row: &[String]| {
            let cells = row.iter().enumerate();
            let cells: Vec<_> = cells.map(|(i, c)| format!("{c:<0$}", width(i))).collect();
            println!("| {} |", cells.join(" | "));
        };
        println!();
        line(&self.head);
        let rule: Vec<_> = (0..self.head.len()).map(|i| "-".repeat(width(i))).collect();
        line(&rule);
        self.rows.iter().for_each(|row| line(row));
        println!();
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn micros(nanoseconds: f64) -> String {
    match nanoseconds / 1_000.0 {
        few if few < 100.0 => format!("{few:.1} µs"),
        many => format!("{many:.0} µs"),
    }
}
