//! Samples, what is said of them, and the table.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

/// How much is measured: all of it, or only as much as shows that it can be.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) smoke: bool,
}

impl Effort {
    /// Rounds in which each contestant has one turn.
    pub(crate) fn rounds(self, full: usize) -> usize {
        if self.smoke { 1 } else { full }
    }

    /// Calls in one turn, programs to add, and the like.
    pub(crate) fn count(self, full: usize) -> usize {
        if self.smoke { (full / 50).max(3) } else { full }
    }
}

/// One contestant's turn in one round gives one figure.
pub(crate) type Turn<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// Gives every contestant its turn in every round, the order turned around each time; a list of
/// figures for each.
pub(crate) fn alternate(rounds: usize, turns: &mut [Turn<'_>]) -> Result<Vec<Vec<f64>>> {
    let mut figures = vec![Vec::with_capacity(rounds); turns.len()];
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..turns.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            figures[at].push(turns[at]()?);
        }
    }
    Ok(figures)
}

/// The time that `work` takes, in milliseconds.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let began = Instant::now();
    let done = work()?;
    Ok((milliseconds(began.elapsed()), done))
}

/// The median time of so many turns of `work`, in milliseconds.
pub(crate) fn median_time(count: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        times.push(timed(&mut work)?.0);
    }
    Ok(median(&times))
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    percentile(figures, 0.5)
}

/// The figure below which this share of them lies.
pub(crate) fn percentile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The median of the rounds' own ratios: what slows a whole round down is in both of its figures.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .map(|(our, their)| our / their)
        .collect();
    median(&ratios)
}

/// What a figure must be.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Beside the others, for comparison.
    None,
}

/// A line of the table.
pub(crate) struct Line {
    pub(crate) work: String,
    pub(crate) ours: String,
    pub(crate) against: String,
    pub(crate) figure: f64,
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
}

impl Line {
    fn verdict(&self) -> &'static str {
        let met = match self.bound {
            Bound::AtMost(most) => self.figure <= most,
            Bound::AtLeast(least) => self.figure >= least,
            Bound::None => return "",
        };
        if met { "yes" } else { "**no**" }
    }

    fn bound(&self) -> String {
        let unit = self.unit;
        match self.bound {
            Bound::AtMost(most) => format!("≤ {most} {unit}"),
            Bound::AtLeast(least) => format!("≥ {least} {unit}"),
            Bound::None => String::new(),
        }
    }
}

/// The table, as Markdown has it.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut text = String::from(
        "| work | ours | against | result | bound | met |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for line in lines {
        let (bound, verdict) = (line.bound(), line.verdict());
        let Line {
            work,
            ours,
            against,
            figure,
            unit,
            ..
        } = line;
        let figure = if figure.is_nan() {
            String::new()
        } else if *figure >= 10.0 {
            format!("{figure:.1} {unit}")
        } else {
            format!("{figure:.2} {unit}")
        };
        let _ = writeln!(
            text,
            "| {work} | {ours} | {against} | {figure} | {bound} | {verdict} |"
        );
    }
    text
}

/// Milliseconds in a cell.
pub(crate) fn ms(figure: f64) -> String {
    if figure >= 10.0 {
        format!("{figure:.1} ms")
    } else if figure >= 1.0 {
        format!("{figure:.2} ms")
    } else {
        format!("{figure:.3} ms")
    }
}
