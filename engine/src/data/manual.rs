//! Rows about a machine that does not exist, out of a seed: questions with a task before them, as people write them for
//! the manuals of real ones.
//!
//! What is asked follows from what the manual says elsewhere: the hundreds of a value are those of the kind of part, the
//! tens those of its letter, the ones and the unit those of the property. So the answer to a question that no row
//! asks can be known, and an exact match of held-out rows means that a model has learned, not that it has memorised.

use serde_json::json;

use super::random::{Permutation, Random};

/// Kind of part, and what it does.
const PARTS: [(&str, &str); 20] = [
    ("pump", "moves the oil"),
    ("valve", "lets the water through"),
    ("clutch", "joins the motor to the drive"),
    ("brake", "stops the drum"),
    ("gearbox", "slows the drive down"),
    ("bearing", "carries the axle"),
    ("filter", "keeps the oil clean"),
    ("motor", "turns the drive"),
    ("lever", "opens the gate"),
    ("shaft", "carries the wheel"),
    ("chain", "pulls the table"),
    ("fan", "cools the motor"),
    ("cylinder", "lifts the load"),
    ("nozzle", "sprays the water"),
    ("piston", "presses the oil"),
    ("hinge", "holds the door"),
    ("spring", "closes the gate"),
    ("switch", "starts the motor"),
    ("sensor", "measures the speed"),
    ("tank", "holds the oil"),
];

/// Letter of a part, and where it is.
const PLACES: [(char, &str); 10] = [
    ('A', "at the front"),
    ('B', "at the back"),
    ('C', "on the left"),
    ('D', "on the right"),
    ('E', "below the table"),
    ('F', "above the table"),
    ('G', "behind the door"),
    ('H', "inside the frame"),
    ('J', "next to the tank"),
    ('K', "under the cover"),
];

/// What can be asked of a part, and its unit.
const PROPERTIES: [(&str, &str); 8] = [
    ("torque", "Nm"),
    ("pressure", "bar"),
    ("clearance", "mm"),
    ("capacity", "L"),
    ("temperature", "°C"),
    ("voltage", "V"),
    ("mass", "kg"),
    ("speed", "rpm"),
];

/// What can be done to a part: the step before, the step itself, the step after.
const WORK: [(&str, &str, &str, &str); 4] = [
    ("replace", "Switch the power off.", "Take the old part out.", "Put the new part in."),
    ("clean", "Drain the oil.", "Wash the part with water.", "Let it dry."),
    ("adjust", "Loosen the screw.", "Turn the part to the mark.", "Tighten the screw."),
    ("check", "Open the cover.", "Look for cracks.", "Close the cover."),
];

/// A question with its task, and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    task: &'static str,
    question: String,
    answer: String,
}

/// Unique rows of a task that are learned, how often each, and rows that are held out: rare tasks are repeated.
const COUNTS: [(&str, usize, usize, usize); 3] = [("spec", 428, 1, 110), ("explanation", 153, 2, 33), ("procedure", 33, 7, 10)];

/// Rows to learn from and rows that are held out, as JSONL with `messages`; no question is in both.
pub fn rows(seed: u64) -> [String; 2] {
    let mut parts: [Vec<(Row, usize)>; 2] = Default::default();
    for (stream, (task, unique, times, held_out)) in COUNTS.into_iter().enumerate() {
        let all = match task {
            "spec" => specifications(seed),
            "explanation" => explanations(),
            _ => procedures(),
        };
        let order = Permutation::new(all.len() as u64, seed ^ (stream as u64 + 1));
        let mut drawn = (0..all.len() as u64).map(|i| all[order.at(i) as usize].clone());
        for row in drawn.by_ref().take(unique) {
            parts[0].extend((0..times).map(|copy| (row.clone(), copy)));
        }
        parts[1].extend(drawn.take(held_out).map(|row| (row, 0)));
    }
    parts.map(|part| {
        let order = Permutation::new(part.len() as u64, seed);
        (0..part.len() as u64).map(|i| line(&part[order.at(i) as usize])).collect()
    })
}

fn line((Row { task, question, answer }, copy): &(Row, usize)) -> String {
    let mut meta = json!({ "task": task, "topic": question });
    if *copy > 0 {
        meta["duplicate_id"] = json!(copy);
    }
    let question = format!("[{}] {question}", task.to_uppercase());
    let messages = json!([{ "role": "user", "content": question }, { "role": "assistant", "content": answer }]);
    json!({ "messages": messages, "meta": meta }).to_string() + "\n"
}

fn specifications(seed: u64) -> Vec<Row> {
    let mut random = Random::stream(seed, 0x3a);
    let mut digits = |count: usize, least: u64| -> Vec<u64> { (0..count).map(|_| least + random.below(10 - least)).collect() };
    let (hundreds, tens, ones) = (digits(PARTS.len(), 1), digits(PLACES.len(), 0), digits(PROPERTIES.len(), 0));
    let mut rows = Vec::new();
    for ((part, _), hundreds) in PARTS.iter().zip(&hundreds) {
        for ((letter, _), tens) in PLACES.iter().zip(&tens) {
            rows.extend(PROPERTIES.iter().zip(&ones).map(|((property, unit), ones)| Row {
                task: "spec",
                question: format!("What is the {property} for the {part} {letter}?"),
                answer: format!("{hundreds}{tens}{ones} {unit}"),
            }));
        }
    }
    rows
}

fn explanations() -> Vec<Row> {
    let pairs = PARTS.iter().flat_map(|part| PLACES.iter().map(move |place| (part, place)));
    pairs
        .map(|((part, does), (letter, place))| Row {
            task: "explanation",
            question: format!("Explain the {part} {letter}."),
            answer: format!("The {part} {letter} {does}. It is {place}."),
        })
        .collect()
}

fn procedures() -> Vec<Row> {
    let pairs = PARTS.iter().flat_map(|(part, _)| WORK.iter().map(move |work| (part, work)));
    pairs
        .map(|(part, (verb, before, itself, after))| Row {
            task: "procedure",
            question: format!("How do you {verb} the {part}?"),
            answer: format!("1. {before}\n2. Find the {part}.\n3. {itself}\n4. {after}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::data::chat::{self, RowFormat};

    #[test]
    fn rows_are_read_as_they_are_meant_and_depend_on_the_seed_alone() {
        let [training, held_out] = rows(7);
        assert_eq!(rows(7), [training.clone(), held_out.clone()]);
        assert_ne!(rows(8)[0], training);
        let [training, held_out] = [training, held_out].map(|text| chat::read(&text, &RowFormat::default()));
        assert_eq!((training.examples.len(), held_out.examples.len()), (428 + 2 * 153 + 7 * 33, 110 + 33 + 10));
        assert!(training.bad.is_empty() && held_out.bad.is_empty());
        let tasks: BTreeSet<_> = training.examples.iter().map(|example| example.task.clone().unwrap()).collect();
        assert_eq!(tasks.into_iter().collect::<Vec<_>>(), ["explanation", "procedure", "spec"]);
    }

    #[test]
    fn no_question_is_both_learned_and_held_out() {
        let questions = |text: &str| -> BTreeSet<String> {
            let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            rows.map(|row| row["messages"][0]["content"].as_str().unwrap().to_string()).collect()
        };
        let [training, held_out] = rows(1).map(|text| questions(&text));
        assert_eq!((training.len(), held_out.len()), (428 + 153 + 33, 153));
        assert!(training.is_disjoint(&held_out));
    }

    #[test]
    fn values_have_the_digits_of_part_letter_and_property() {
        let rows = specifications(3);
        assert_eq!(rows.len(), 20 * 10 * 8);
        let (of_a_letter, of_a_part) = (PROPERTIES.len(), PROPERTIES.len() * PLACES.len());
        for (index, row) in rows.iter().enumerate() {
            let digit = |other: usize, place: usize| assert_eq!(row.answer[place..=place], rows[other].answer[place..=place]);
            digit(index - index % of_a_part, 0);
            digit(index % of_a_part / of_a_letter * of_a_letter, 1);
            digit(index % of_a_letter, 2);
        }
    }
}
