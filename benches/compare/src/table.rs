//! Figures of several rounds as a table in Markdown: medians, and how far the rounds lie apart.

use std::fmt::Write as _;

/// What is measured.
pub(crate) struct Measure<F> {
    pub(crate) label: &'static str,
    /// None where it cannot be measured here.
    pub(crate) figure: fn(&F) -> Option<f64>,
    /// Whether ratios to and of the first column say something: not where it keeps nothing.
    pub(crate) beside_first: bool,
}

/// One row for each measure, followed by its ratios to the first two columns. `columns` are the
/// candidates, with their figures of each round; a ratio is taken within its round, since what
/// disturbs the machine for a while disturbs all candidates.
pub(crate) fn table<F>(
    names: &[String; 2],
    columns: &[(String, Vec<F>)],
    measures: &[Measure<F>],
) -> String {
    let mut table = row("", columns.iter().map(|(title, _)| title.clone()));
    table += &rule(columns.len());
    for measure in measures {
        let figures: Vec<Option<Vec<f64>>> = columns
            .iter()
            .map(|(_, rounds)| rounds.iter().map(measure.figure).collect())
            .collect();
        let cells = figures.iter().map(|rounds| match rounds {
            Some(rounds) => grouped(median(rounds)),
            None => "not known".to_owned(),
        });
        table += &row(&format!("**{}**", measure.label), cells);
        for (base, name) in names.iter().enumerate() {
            if base == 0 && !measure.beside_first {
                continue;
            }
            let cells =
                figures
                    .iter()
                    .enumerate()
                    .map(|(column, rounds)| match (rounds, &figures[base]) {
                        (Some(_), Some(_)) if column == base => "1".to_owned(),
                        _ if column == 0 && !measure.beside_first => String::new(),
                        (Some(rounds), Some(base)) => ratio(rounds, base),
                        _ => String::new(),
                    });
            table += &row(&format!("beside {name}"), cells);
        }
    }
    table
}

/// A table without figures.
pub(crate) fn plain<const N: usize>(cases: [&str; N], columns: &[(String, [String; N])]) -> String {
    let mut table = row("", columns.iter().map(|(title, _)| title.clone()));
    table += &rule(columns.len());
    for (case, label) in cases.iter().enumerate() {
        table += &row(label, columns.iter().map(|(_, cells)| cells[case].clone()));
    }
    table
}

fn row(label: &str, cells: impl Iterator<Item = String>) -> String {
    let mut row = format!("| {label} |");
    for cell in cells {
        write!(row, " {cell} |").expect("a string takes what is written");
    }
    row + "\n"
}

fn rule(columns: usize) -> String {
    format!("|---|{}\n", "---|".repeat(columns))
}

/// The median of the rounds' ratios, and the least and the greatest of them.
fn ratio(rounds: &[f64], base: &[f64]) -> String {
    let mut ratios: Vec<f64> = rounds.iter().zip(base).map(|(a, b)| a / b).collect();
    let median = short(median(&ratios));
    ratios.sort_by(f64::total_cmp);
    let ends = (ratios.first(), ratios.last());
    let (Some(least), Some(greatest)) = ends else {
        return String::new();
    };
    let (least, greatest) = (short(*least), short(*greatest));
    match least == greatest {
        true => median,
        false => format!("{median} ({least} to {greatest})"),
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

fn short(ratio: f64) -> String {
    match ratio.abs() {
        small if small < 9.995 => format!("{ratio:.2}"),
        middle if middle < 99.95 => format!("{ratio:.1}"),
        _ => format!("{ratio:.0}"),
    }
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    match value <= -0.5 {
        true => format!("-{grouped}"),
        false => grouped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[5.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // Ten times as slow a machine in one round changes nothing.
        assert_eq!(ratio(&[2.0, 20.0], &[1.0, 10.0]), "2.00");
        assert_eq!(
            ratio(&[2.0, 3.0, 4.0], &[1.0, 1.0, 1.0]),
            "3.00 (2.00 to 4.00)"
        );
    }

    #[test]
    fn figures_are_written_shortly() {
        assert_eq!(grouped(1_234_567.4), "1 234 567");
        assert_eq!(grouped(12.0), "12");
        assert_eq!(grouped(-1_200.0), "-1 200");
        assert_eq!(grouped(-0.2), "0");
        assert_eq!(
            (short(1.234), short(12.34), short(123.4)),
            ("1.23".into(), "12.3".into(), "123".into())
        );
    }

    #[test]
    fn a_table_has_a_row_for_each_figure_and_ratio() {
        let columns = [
            ("bare".to_owned(), vec![100.0, 100.0]),
            ("ours".to_owned(), vec![150.0, 150.0]),
            ("other".to_owned(), vec![300.0, 600.0]),
        ];
        let measures = [
            Measure {
                label: "time",
                figure: |f: &f64| Some(*f),
                beside_first: true,
            },
            Measure {
                label: "kept",
                figure: |f| Some(*f),
                beside_first: false,
            },
            Measure {
                label: "size",
                figure: |_| None,
                beside_first: false,
            },
        ];
        let expected = "\
            |  | bare | ours | other |\n\
            |---|---|---|---|\n\
            | **time** | 100 | 150 | 450 |\n\
            | beside bare | 1 | 1.50 | 4.50 (3.00 to 6.00) |\n\
            | beside ours | 0.67 | 1 | 3.00 (2.00 to 4.00) |\n\
            | **kept** | 100 | 150 | 450 |\n\
            | beside ours |  | 1 | 3.00 (2.00 to 4.00) |\n\
            | **size** | not known | not known | not known |\n\
            | beside ours |  |  |  |\n";
        let names = ["bare".to_owned(), "ours".to_owned()];
        assert_eq!(table(&names, &columns, &measures), expected);
    }
}
