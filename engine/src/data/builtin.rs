//! Three small corpora out of a seed, for a first run without any files.
//!
//! Little stories, Python-like functions and arithmetic, each from a grammar of its own: names stay the
//! same through a story, functions do what their names say, sums are true. A model of one to three
//! million parameters visibly learns them within a few hundred steps. Documents are separated by
//! `<|endoftext|>` on a line of its own.

use crate::data::random::Random;
use crate::text::bpe::END_OF_TEXT;

/// Name, random stream and grammar of a document.
type Kind = (&'static str, u64, fn(&mut Random) -> String);

const KINDS: [Kind; 3] = [("input", 1, story), ("code", 2, program), ("math", 3, arithmetic)];

/// General text (`input`), `code` and `math`, each of about `bytes_each` bytes and made when it is asked for.
pub fn corpora(seed: u64, bytes_each: usize) -> impl Iterator<Item = (&'static str, String)> {
    KINDS.into_iter().map(move |(name, stream, document)| (name, corpus(Random::stream(seed, stream), bytes_each, document)))
}

fn corpus(mut random: Random, bytes: usize, document: fn(&mut Random) -> String) -> String {
    let mut text = String::with_capacity(bytes + 2048);
    while text.len() < bytes {
        if !text.is_empty() {
            text.push_str(END_OF_TEXT);
            text.push('\n');
        }
        text.push_str(&document(&mut random));
    }
    text
}

struct Person {
    name: &'static str,
    he: &'static str,
    his: &'static str,
    him: &'static str,
}

const GIRLS: &[&str] = &["Anna", "Mira", "Lucy", "Clara", "Nora", "Ella", "Rosa", "Ivy", "Tilda", "Maya"];
const BOYS: &[&str] = &["Tom", "Ben", "Oscar", "Leo", "Felix", "Hugo", "Sam", "Noah", "Emil", "Jack"];

fn person(random: &mut Random, other_than: &str) -> Person {
    loop {
        let girl = random.below(2) == 0;
        let name = random.pick(if girl { GIRLS } else { BOYS });
        if name != other_than {
            return if girl {
                Person { name, he: "she", his: "her", him: "her" }
            } else {
                Person { name, he: "he", his: "his", him: "him" }
            };
        }
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A story with two people, a thing that is lost or found, talk and an end.
fn story(random: &mut Random) -> String {
    let hero = person(random, "");
    let friend = person(random, hero.name);
    let thing = random.pick(&["kite", "lantern", "boat", "drum", "map", "key", "basket", "bell", "book", "whistle", "ladder", "mirror"]);
    let colour = random.pick(&["red", "blue", "green", "yellow", "silver", "golden", "white", "black"]);
    let place = random.pick(&["river", "forest", "village", "hill", "market", "harbour", "garden", "mill", "bridge", "meadow"]);
    let animal = random.pick(&["fox", "cat", "goat", "crow", "rabbit", "horse", "duck", "owl"]);
    let weather = random.pick(&[
        "The sun was shining",
        "It was raining",
        "Snow was falling",
        "A cold wind was blowing",
        "The sky was grey",
        "The stars were out",
    ]);
    let when = random.pick(&["One morning", "One evening", "On a summer day", "Early one day", "Late at night", "After breakfast"]);
    let Person { name, he, his, him } = hero;
    let other = friend.name;

    let mut text = format!("{}\n\n", capital(&format!("{name} and the {colour} {thing}")));
    text += &match random.below(3) {
        0 => format!("{name} lived near the {place} with {his} friend {other}. "),
        1 => format!(
            "Once upon a time there was a child called {name}, who lived by the {place}. {capital_his} best friend was {other}. ",
            capital_his = capital(his)
        ),
        _ => format!("Once upon a time, everybody at the {place} knew {name} and {other}. "),
    };
    text += &format!("{when}, {name} went to the {place}. {weather}. ");
    let lost = random.below(2) == 0;
    if lost {
        text += &format!("{} wanted to show {other} {his} {colour} {thing}, but the {thing} was gone.\n\n", capital(he));
        text += &format!("\"Have you seen my {colour} {thing}?\" asked {name}.\n");
        text += &match random.below(3) {
            0 => format!("\"No,\" said {other}, \"but I will help you to look for it.\"\n"),
            1 => format!("\"A {animal} ran past with something {colour},\" said {other}.\n"),
            _ => format!("\"Where did you see the {thing} last?\" asked {other}.\n\"Near the {place},\" said {name}.\n"),
        };
        text += &format!("\nSo {name} and {other} looked behind the trees and under the stones. ");
    } else {
        text += &format!("There {he} found a {colour} {thing} in the grass.\n\n");
        text += &format!("\"Look, {other}!\" said {name}. \"I have found a {colour} {thing}.\"\n");
        text += &match random.below(3) {
            0 => format!("\"Whose {thing} is it?\" asked {other}.\n"),
            1 => format!("\"It must belong to the {animal},\" said {other}.\n"),
            _ => format!("\"May I hold the {thing}?\" asked {other}.\n\"Yes, but be careful,\" said {name}.\n"),
        };
        text += &format!("\nThey carried the {thing} along the {place} and asked everyone they met. ");
    }
    for _ in 0..random.below(3) {
        text += &match random.below(5) {
            0 => format!(
                "They asked the old {}, but nobody knew anything about it. ",
                random.pick(&["miller", "baker", "teacher", "fisherman", "shepherd"])
            ),
            1 => format!(
                "{other} was tired, so they sat down and shared {} {}. ",
                random.pick(&["two", "three", "four"]),
                random.pick(&["apples", "pears", "cakes", "nuts"])
            ),
            2 => format!("{name} was {}, but {he} did not give up. ", random.pick(&["sad", "cold", "hungry", "afraid"])),
            3 => format!("\"We should go home soon,\" said {other}. \"Not yet,\" said {name}. "),
            _ => format!(
                "Then they heard a {} behind the {}. ",
                random.pick(&["noise", "song", "voice", "laugh"]),
                random.pick(&["wall", "door", "hedge", "tree"])
            ),
        };
    }
    text += "\n\n";
    text += &if lost {
        format!(
            "At last they saw a little {animal}. The {animal} was sleeping, and next to it lay the {colour} {thing}. {name} took {his} {thing} and thanked {other}. "
        )
    } else {
        format!(
            "At last they met a {animal}. The {animal} looked at {name} and then at the {thing}, and they knew that the {colour} {thing} was its own. {name} gave it back. "
        )
    };
    text += random.pick(&[
        "Then they went home together.",
        "From that day on they were friends with everyone.",
        "That night they told the story again and again.",
    ]);
    text += &format!(" And {other} never forgot {him}.\n");
    text.replace(" \n", "\n")
}

const VARIABLES: &[&str] = &["x", "n", "value", "number", "a"];
const LISTS: &[&str] = &["items", "values", "numbers", "data"];

/// A small module: one to three functions with what they return.
fn program(random: &mut Random) -> String {
    let count = 1 + random.below(3);
    let functions: Vec<String> = (0..count).map(|_| function(random)).collect();
    functions.join("\n\n")
}

fn function(random: &mut Random) -> String {
    let x = random.pick(VARIABLES);
    let list = random.pick(LISTS);
    let k = 2 + random.below(8) as i64;
    let v = 1 + random.below(12) as i64;
    let numbers: Vec<i64> = (0..3 + random.below(3)).map(|_| random.below(20) as i64).collect();
    let shown = format!("{numbers:?}");
    let (sum, most, least) =
        (numbers.iter().sum::<i64>(), numbers.iter().max().copied().unwrap_or(0), numbers.iter().min().copied().unwrap_or(0));
    match random.below(11) {
        0 => format!("def add_{k}({x}):\n    \"\"\"Return {x} plus {k}.\"\"\"\n    return {x} + {k}\n\nassert add_{k}({v}) == {}\n", v + k),
        1 => format!(
            "def multiply_by_{k}({x}):\n    \"\"\"Return {x} times {k}.\"\"\"\n    return {x} * {k}\n\nassert multiply_by_{k}({v}) == {}\n",
            v * k
        ),
        2 => format!(
            "def subtract_{k}({x}):\n    \"\"\"Return {x} minus {k}.\"\"\"\n    return {x} - {k}\n\nassert subtract_{k}({v}) == {}\n",
            v - k
        ),
        3 => format!(
            "def is_divisible_by_{k}({x}):\n    \"\"\"Return True if {k} divides {x}.\"\"\"\n    return {x} % {k} == 0\n\nassert is_divisible_by_{k}({v}) is {}\n",
            if v % k == 0 { "True" } else { "False" }
        ),
        4 => format!(
            "def total({list}):\n    \"\"\"Return the sum of all {list}.\"\"\"\n    result = 0\n    for {x} in {list}:\n        result += {x}\n    return result\n\nassert total({shown}) == {sum}\n"
        ),
        5 => format!(
            "def largest({list}):\n    \"\"\"Return the largest of the {list}.\"\"\"\n    best = {list}[0]\n    for {x} in {list}:\n        if {x} > best:\n            best = {x}\n    return best\n\nassert largest({shown}) == {most}\n"
        ),
        6 => format!(
            "def smallest({list}):\n    \"\"\"Return the smallest of the {list}.\"\"\"\n    best = {list}[0]\n    for {x} in {list}:\n        if {x} < best:\n            best = {x}\n    return best\n\nassert smallest({shown}) == {least}\n"
        ),
        7 => format!(
            "def count_above_{k}({list}):\n    \"\"\"Count the {list} above {k}.\"\"\"\n    return len([{x} for {x} in {list} if {x} > {k}])\n\nassert count_above_{k}({shown}) == {}\n",
            numbers.iter().filter(|number| **number > k).count()
        ),
        8 => {
            let word = random.pick(&["apple", "river", "stone", "cloud", "train", "paper", "green", "window"]);
            let reversed: String = word.chars().rev().collect();
            format!(
                "def reverse(text):\n    \"\"\"Return the text backwards.\"\"\"\n    result = \"\"\n    for letter in text:\n        result = letter + result\n    return result\n\nassert reverse(\"{word}\") == \"{reversed}\"\n"
            )
        }
        9 => format!(
            "def clamp_to_{k}({x}):\n    \"\"\"Return {x}, but at most {k}.\"\"\"\n    if {x} > {k}:\n        return {k}\n    return {x}\n\nassert clamp_to_{k}({v}) == {}\n",
            v.min(k)
        ),
        _ => {
            let class = random.pick(&["Counter", "Account", "Score", "Stack", "Basket"]);
            format!(
                "class {class}:\n    \"\"\"Start at {v} and grow by {k}.\"\"\"\n\n    def __init__(self):\n        self.{x} = {v}\n\n    def grow(self):\n        self.{x} += {k}\n        return self.{x}\n\nassert {class}().grow() == {}\n",
                v + k
            )
        }
    }
}

/// A sheet of true statements: sums, tables, rows of numbers, comparisons, word problems.
fn arithmetic(random: &mut Random) -> String {
    match random.below(5) {
        0 => {
            let k = 1 + random.below(60);
            let rows = (1..=10).map(|i| format!("{i} * {k} = {}\n", i * k));
            format!("Table of {k}:\n{}", rows.collect::<String>())
        }
        1 => {
            let (first, step) = (random.below(90), 1 + random.below(12));
            let numbers: Vec<String> = (0..8).map(|i| (first + i * step).to_string()).collect();
            format!("Count from {first} in steps of {step}:\n{}.\nThe next number is {}.\n", numbers.join(", "), first + 8 * step)
        }
        2 => {
            let lines = 4 + random.below(5);
            (0..lines).map(|_| statement(random)).collect()
        }
        _ => word_problem(random),
    }
}

fn statement(random: &mut Random) -> String {
    let (a, b) = (random.below(50), random.below(50));
    match random.below(5) {
        0 | 1 => format!("{a} + {b} = {}\n", a + b),
        2 => format!("{} - {b} = {a}\n", a + b),
        3 => format!(
            "{} is {} {}.\n",
            a,
            if a > b {
                "greater than"
            } else if a < b {
                "less than"
            } else {
                "equal to"
            },
            b
        ),
        _ => format!("{a} is an {} number.\n", if a % 2 == 0 { "even" } else { "odd" }),
    }
}

fn word_problem(random: &mut Random) -> String {
    let Person { name, he, .. } = person(random, "");
    let he = capital(he);
    let thing = random.pick(&["apples", "books", "coins", "marbles", "stamps", "shells", "pencils", "cards"]);
    let (a, b, c) = (2 + random.below(20), 1 + random.below(10), 2 + random.below(6));
    match random.below(4) {
        0 => format!(
            "Question: {name} has {a} {thing}. {he} gets {b} more. How many {thing} does {name} have?\nAnswer: {a} + {b} = {0}. {name} has {0} {thing}.\n#### {0}\n",
            a + b
        ),
        1 => format!(
            "Question: {name} has {0} {thing}. {he} gives away {b}. How many {thing} are left?\nAnswer: {0} - {b} = {a}. There are {a} {thing} left.\n#### {a}\n",
            a + b
        ),
        2 => format!(
            "Question: {name} has {c} boxes with {b} {thing} in each. How many {thing} does {name} have?\nAnswer: {c} * {b} = {0}. {name} has {0} {thing}.\n#### {0}\n",
            b * c
        ),
        _ => format!(
            "Question: {name} buys {c} bags of {b} {thing} and finds {a} more. How many {thing} is that?\nAnswer: {c} * {b} = {0}. {0} + {a} = {1}. {name} has {1} {thing}.\n#### {1}\n",
            b * c,
            b * c + a
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn corpora_depend_on_the_seed_alone() {
        assert!(corpora(1, 5000).eq(corpora(1, 5000)));
        assert!(corpora(1, 5000).ne(corpora(2, 5000)));
        for (name, text) in corpora(7, 20_000) {
            assert!(text.len() >= 20_000 && text.len() < 23_000, "{name}: {}", text.len());
            assert!(text.split(END_OF_TEXT).count() > 10);
        }
    }

    #[test]
    fn statements_are_true() {
        let texts: BTreeMap<_, _> = corpora(11, 60_000).collect();
        let (code, math) = (&texts["code"], &texts["math"]);
        let mut checked = 0;
        for line in math.lines() {
            let Some((left, right)) = line.split_once(" = ") else { continue };
            let parts: Vec<&str> = left.split(' ').collect();
            let [a, operator, b] = parts[..] else { continue };
            let (Ok(a), Ok(b), Ok(result)) = (a.parse::<i64>(), b.parse::<i64>(), right.parse::<i64>()) else { continue };
            let value = match operator {
                "+" => a + b,
                "-" => a - b,
                _ => a * b,
            };
            assert_eq!(value, result, "{line}");
            checked += 1;
        }
        assert!(checked > 200, "{checked}");
        assert!(code.contains("assert total([") && code.contains("def add_"));
    }

    #[test]
    fn documents_differ() {
        for (name, text) in corpora(5, 50_000) {
            let mut documents: Vec<&str> = text.split(END_OF_TEXT).collect();
            let all = documents.len();
            documents.sort_unstable();
            documents.dedup();
            assert!(documents.len() * 10 > all * 8, "{name}: {} of {all} differ", documents.len());
        }
    }
}
