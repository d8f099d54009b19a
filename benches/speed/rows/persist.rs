//! What it costs that changes outlive the daemon, which then reads all of them at each change.

use anyhow::Result;

use crate::measure::{Bound, Effort, Line, median, ms, ratio, timed};
use crate::setups::{ADD, Ours, REMOVE, addition, populate, populated_group, removal};
use crate::wire::{Wire, request};

/// One program that comes and goes where so many are kept, beside the same where none is.
pub(crate) fn price(effort: Effort) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for there in [10, 100, 1000] {
        lines.extend(with(effort.count(there), effort.rounds(20))?);
    }
    Ok(lines)
}

fn with(there: usize, rounds: usize) -> Result<[Line; 2]> {
    let kept = Ours::start_with(&populated_group(), &["--persist"])?;
    let not = Ours::start(&populated_group())?;
    let mut wires = Vec::new();
    for ours in [&kept, &not] {
        populate(&ours.addr(), 0..there)?;
        wires.push(Wire::open(&ours.addr())?);
    }
    let mut comes = [Vec::new(), Vec::new()];
    let mut goes = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        let number = there + round;
        for (who, wire) in wires.iter_mut().enumerate() {
            comes[who].push(timed(|| wire.call(&request(ADD, &addition(number))))?.0);
            goes[who].push(timed(|| wire.call(&request(REMOVE, &removal(number))))?.0);
        }
    }
    let line = |what: &str, times: &[Vec<f64>; 2], bound: Bound| Line {
        work: format!("one {what} with {there} programs kept"),
        ours: ms(median(&times[0])),
        against: format!("without --persist {}", ms(median(&times[1]))),
        figure: ratio(&times[0], &times[1]),
        unit: "x",
        bound,
    };
    // The share of what is always the same is larger where supervisord has little to do.
    let bound = match there {
        1000 => Bound::AtMost(1.3),
        _ => Bound::None,
    };
    Ok([
        line("addition", &comes, bound),
        line("removal", &goes, Bound::None),
    ])
}
