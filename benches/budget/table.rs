//! The table, in Markdown.

use super::support::measuring;

/// One row per budget.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<[String; 7]>,
    notes: Vec<String>,
}

/// One budget.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) measured: String,
    pub(crate) floor: String,
    pub(crate) ratio: String,
    pub(crate) budget: String,
    /// `None` where it could not be measured. A trial run says nothing of it.
    pub(crate) met: Option<bool>,
    /// Those that the layer adds.
    pub(crate) allocations: String,
}

impl Table {
    pub(crate) fn row(&mut self, row: Row) {
        let met = match row.met {
            _ if !measuring() => "a trial",
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "not measured",
        };
        self.rows.push([
            row.what,
            row.measured,
            row.floor,
            row.ratio,
            row.budget,
            met.to_owned(),
            row.allocations,
        ]);
    }

    /// A budget that could not be measured here.
    pub(crate) fn not_measured(&mut self, what: &str, budget: &str, why: &str) {
        self.row(Row {
            what: what.to_owned(),
            measured: String::new(),
            floor: String::new(),
            ratio: String::new(),
            budget: budget.to_owned(),
            met: None,
            allocations: String::new(),
        });
        self.note(format!("{what}: {why}."));
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(crate) fn print(&self) {
        let head = [
            "what the layer adds to the bare service",
            "measured",
            "floor, same run",
            "measured / floor",
            "budget",
            "",
            "allocations added",
        ]
        .map(str::to_owned);
        let width = |column: usize| {
            let cells = std::iter::once(&head).chain(&self.rows);
            let widths = cells.map(|row| row[column].chars().count());
            widths.max().unwrap_or_default().max(3)
        };
        let line = |row: &[String; 7]| {
            let cells = row.iter().enumerate();
            let cells: Vec<_> = cells.map(|(i, c)| format!("{c:<0$}", width(i))).collect();
            println!("| {} |", cells.join(" | "));
        };
        println!();
        line(&head);
        line(&std::array::from_fn(|i| "-".repeat(width(i))));
        self.rows.iter().for_each(line);
        println!();
        self.notes.iter().for_each(|note| println!("{note}"));
    }
}
