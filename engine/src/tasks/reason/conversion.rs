//! Unit conversion: a table of units, and questions made from it.

mod units;

use super::questions::Question;
use crate::data::random::{Permutation, of_name};
use crate::error::{Error, Result};
use units::{KINDS, TEMPERATURE, UNITS, Unit};

/// Questions about anything that is measured; `{n}`, `{from}` and `{to}` stand for number and units.
const ASKED: [&str; 12] = [
    "Convert {n} {from} to {to}.",
    "Give {n} {from} in {to}.",
    "Write {n} {from} in {to}.",
    "Work out {n} {from} in {to}.",
    "Calculate {n} {from} in {to}.",
    "Turn {n} {from} into {to}.",
    "What would {n} {from} be in {to}?",
    "Can you tell me {n} {from} in {to}?",
    "What do you get for {n} {from} in {to}?",
    "If it says {n} {from}, what is that in {to}?",
    "I read {n} {from} and need {to}. What do I write?",
    "Which value in {to} stands for {n} {from}?",
];

/// Questions about what can be counted: no temperatures.
const COUNTED: [&str; 8] = [
    "How many {to} are in {n} {from}?",
    "How many {to} do I get for {n} {from}?",
    "How many {to} does it take to make {n} {from}?",
    "I have {n} {from}. How many {to} is that?",
    "With {n} {from}, how many {to} do I have?",
    "By how many {to} can I replace {n} {from}?",
    "Find the number of {to} in {n} {from}.",
    "Count the {to} in {n} {from}.",
];

/// The largest number in a question.
const MOST: u64 = 10;
/// Answers lie between them, save temperatures.
const ANSWERS: [f64; 2] = [0.125, 80_000.0];

/// A question that lacks its number.
struct Ask {
    wording: &'static str,
    units: [&'static Unit; 2],
    /// One and many of the first unit, many of the second.
    names: ([&'static str; 2], &'static str),
}

impl Ask {
    fn with(&self, n: u64) -> Question {
        let ([from, to], (names, many)) = (self.units, self.names);
        let name = names[usize::from(n > 1)];
        let text = self.wording.replace("{n}", &n.to_string()).replace("{from}", name).replace("{to}", many);
        Question { text, answer: from.convert(n as f64, to), reasoning: None }
    }
}

/// All questions about one kind of unit in a random order.
struct Pool {
    asks: Vec<Ask>,
    order: Permutation,
}

impl Pool {
    fn new(kind: &'static str, seed: u64) -> Self {
        let asks = asks(kind);
        let order = Permutation::new(asks.len() as u64 * MOST, of_name(seed, kind));
        Self { asks, order }
    }

    fn len(&self) -> u64 {
        self.asks.len() as u64 * MOST
    }

    fn at(&self, place: u64) -> Option<Question> {
        let drawn = (place < self.len()).then(|| self.order.at(place))?;
        Some(self.asks[(drawn / MOST) as usize].with(drawn % MOST + 1))
    }
}

fn asks(kind: &'static str) -> Vec<Ask> {
    let counted = if kind == TEMPERATURE { &[] } else { COUNTED.as_slice() };
    let wordings = || ASKED.iter().chain(counted);
    let units: Vec<&Unit> = UNITS.iter().filter(|unit| unit.kind == kind).collect();
    let pairs = units.iter().flat_map(|from| units.iter().map(|to| [*from, *to])).filter(|[from, to]| is_asked(from, to));
    let named = pairs.flat_map(|units| names(units).map(move |names| (units, names)));
    named.flat_map(|(units, names)| wordings().map(move |wording| Ask { wording, units, names })).collect()
}

/// Every way to name two units.
fn names([from, to]: [&'static Unit; 2]) -> impl Iterator<Item = ([&'static str; 2], &'static str)> {
    from.names.iter().flat_map(|from| to.names.iter().map(|[_, many]| (*from, *many)))
}

/// Whether conversions between two units are asked for.
fn is_asked(from: &Unit, to: &Unit) -> bool {
    let [least, most] = ANSWERS;
    from != to && (from.kind == TEMPERATURE || from.convert(1.0, to) >= least && from.convert(MOST as f64, to) <= most)
}

/// Questions to learn from and to be tested on; no question is in both, and none twice. Every kind of unit has the same share
/// as long as it has questions left.
///
/// # Errors
/// [`Error::Config`] where more are asked for than there are.
pub fn make([train, valid]: [usize; 2], temperatures: bool, seed: u64) -> Result<[Vec<Question>; 2]> {
    let kinds = KINDS.into_iter().filter(|kind| temperatures || *kind != TEMPERATURE);
    let pools: Vec<Pool> = kinds.map(|kind| Pool::new(kind, seed)).collect();
    let (asked, most) = (train.saturating_add(valid), pools.iter().map(Pool::len).sum::<u64>());
    if asked as u64 > most {
        return Err(Error::Config(format!("{asked} questions are asked for and {most} exist: ask for fewer")));
    }
    let longest = pools.iter().map(Pool::len).max().unwrap_or(0);
    let mut drawn = (0..longest).flat_map(|place| pools.iter().filter_map(move |pool| pool.at(place)));
    let train = drawn.by_ref().take(train).collect();
    Ok([train, drawn.take(valid).collect()])
}

/// What the units of a question measure: `length`, `mass`, `time`, `volume`, `speed`, `data`, `temperature`; `other` where
/// none is known.
pub fn kind(question: &str) -> &'static str {
    units::kind(question).unwrap_or("other")
}

/// Worked examples that are shown where no others are given. None of them is ever made as a question.
pub fn shots() -> Vec<Question> {
    [
        ("Change 6 kg into grams.", 6000.0, "1 kg = 1000 g. 6 * 1000 = <answer>6000</answer>"),
        ("Four weeks are how many days?", 28.0, "1 week = 7 days. 4 * 7 = <answer>28</answer>"),
        ("Change 5 gallons into liters.", 18.927_058_92, "1 gallon = 3.785 liters. 5 * 3.785 = <answer>18.925</answer>"),
    ]
    .map(|(text, answer, reasoning)| Question { text: text.into(), answer, reasoning: Some(reasoning.into()) })
    .into()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;
    use crate::tasks::reason::{answer, questions};

    #[test]
    fn every_question_is_short_and_different_and_its_answer_is_in_range() {
        let (mut seen, shots) = (HashSet::new(), shots());
        for kind in KINDS {
            let pool = Pool::new(kind, 1);
            for Question { text, answer, reasoning } in (0..pool.len()).map(|place| pool.at(place).unwrap()) {
                assert!(text.len() <= 80 && !text.contains(['{', '}']), "{text}");
                let n = text.split(|letter: char| !letter.is_ascii_digit()).find_map(|n| n.parse::<u64>().ok()).unwrap();
                let fair = if kind == TEMPERATURE { answer.abs() > 1.0 } else { (0.125..=80_000.0).contains(&answer) };
                assert!((1..=10).contains(&n) && fair && reasoning.is_none(), "{text} {answer}");
                assert!(shots.iter().all(|shot| shot.text != text), "{text}");
                assert!(seen.insert(text), "{kind}");
            }
            assert!(pool.len() > 1000 && pool.at(pool.len()).is_none(), "{kind}");
        }
    }

    #[test]
    fn more_questions_than_exist_are_refused() {
        let most: usize = KINDS.iter().filter(|kind| **kind != TEMPERATURE).map(|kind| asks(kind).len() * 10).sum();
        let [train, valid] = make([most - 5, 5], false, 1).unwrap();
        assert_eq!([train.len(), valid.len()], [most - 5, 5]);
        assert!(make([most, 5], true, 1).is_ok());
        for count in [most + 1, usize::MAX] {
            let asked = count.saturating_add(5);
            let expected = format!("{asked} questions are asked for and {most} exist: ask for fewer");
            assert_eq!(make([count, 5], false, 1).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn names_agree_with_their_number() {
        let texts: HashSet<String> = asks("length").iter().flat_map(|ask| [1, 2, 10].map(|n| ask.with(n).text)).collect();
        for text in ["How many inches are in 1 foot?", "How many inches are in 2 feet?", "Convert 10 ft to in."] {
            assert!(texts.contains(text), "{text}");
        }
        for text in ["How many inches are in 1 feet?", "How many inch are in 2 feet?", "Convert 10 foot to in."] {
            assert!(!texts.contains(text), "{text}");
        }
    }

    #[test]
    fn units_that_differ_too_much_are_not_asked_for() {
        let bytes = ["B", "KB", "MB"].map(|name| UNITS.iter().find(|unit| unit.names[0][0] == name).unwrap());
        let bit = UNITS.iter().find(|unit| unit.names[0][0] == "bit").unwrap();
        assert_eq!(bytes.map(|unit| is_asked(unit, bit)), [true, true, false]); // 80 and 80000 at most, and too many
        assert_eq!(bytes.map(|unit| is_asked(bit, unit)), [true, false, false]); // 0.125 at least, and too few
        assert!(!is_asked(bit, bit));
    }

    #[test]
    fn kinds_are_read_from_the_questions() {
        for kind in KINDS {
            for ask in asks(kind).iter().step_by(7) {
                assert_eq!(super::kind(&ask.with(3).text), kind, "{}", ask.with(3).text);
            }
        }
    }

    #[test]
    fn kinds_have_equal_shares_and_files_share_nothing() {
        for (temperatures, kinds) in [(false, 6), (true, 7)] {
            let [train, valid] = make([1000, 700], temperatures, 1337).unwrap();
            assert_eq!([train.len(), valid.len()], [1000, 700]);
            assert_eq!(questions::oddities(&train, &valid), None);
            for questions in [train, valid] {
                let mut shares = BTreeMap::new();
                questions.iter().for_each(|question| *shares.entry(kind(&question.text)).or_insert(0) += 1);
                let even = questions.len() / kinds;
                assert!(shares.len() == kinds && shares.values().all(|share| even.abs_diff(*share) <= 1), "{shares:?}");
            }
        }
    }

    #[test]
    fn questions_depend_on_the_seed_alone() {
        let first = make([20, 10], true, 5).unwrap();
        assert_eq!(first, make([20, 10], true, 5).unwrap());
        assert_ne!(first, make([20, 10], true, 6).unwrap());
        let [train, valid] = first;
        let joined = train.into_iter().chain(valid).collect::<Vec<_>>();
        assert_eq!(make([30, 0], true, 5).unwrap(), [joined, vec![]]);
        let texts = make([3, 0], false, 1337).unwrap()[0].iter().map(|question| question.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts, ["Convert 9 feet to meters.", "By how many kilograms can I replace 3 tons?", "Give 4 h in seconds."]);
    }

    #[test]
    fn answers_survive_their_text_and_the_tolerance() {
        let [train, _] = make([3000, 0], true, 9).unwrap();
        for question in train {
            let text = format!("<answer>{}</answer>", answer::shown(question.answer));
            assert!(answer::is_right(answer::parse(&text), question.answer, 0.001), "{question:?}");
        }
    }

    #[test]
    fn worked_examples_are_right() {
        let shots = shots();
        let kinds: HashSet<&str> = shots.iter().map(|shot| kind(&shot.text)).collect();
        assert!(kinds.len() == shots.len() && !kinds.contains("other"), "{kinds:?}");
        for shot in shots {
            let reasoning = shot.reasoning.unwrap();
            assert!(answer::is_right(answer::parse(&reasoning), shot.answer, 0.05), "{reasoning}");
            // "… n * factor = <answer>…": exactly what it says.
            let sum = reasoning.split_once(". ").unwrap().1.split_once(" = ").unwrap().0;
            let product: f64 = sum.split(" * ").map(|part| part.parse::<f64>().unwrap()).product();
            assert!((product - answer::parse(&reasoning)).abs() < 1e-9, "{reasoning}");
            let [from, to] = reasoning.split_once(". ").unwrap().0.split_once(" = ").unwrap().into();
            assert!(from.starts_with("1 ") && to.starts_with(sum.split_once(" * ").unwrap().1), "{reasoning}");
        }
    }
}
