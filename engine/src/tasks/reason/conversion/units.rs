//! The table of units, and the units in a question.

/// What units measure.
pub const KINDS: [&str; 7] = ["length", "mass", "time", "volume", "speed", "data", TEMPERATURE];
/// The kind whose zeros differ.
pub const TEMPERATURE: &str = "temperature";

/// A unit under all its names.
#[derive(Debug, PartialEq)]
pub struct Unit {
    /// One of [`KINDS`].
    pub kind: &'static str,
    /// How many parts it has; those of a kind are the same, and so small that every size is whole and exact.
    pub size: f64,
    /// Parts that its zero lies above the common one.
    pub zero: f64,
    /// How one and how many of it are written in questions; no name belongs to two units.
    pub names: &'static [[&'static str; 2]],
}

impl Unit {
    const fn new(kind: &'static str, size: f64, names: &'static [[&'static str; 2]]) -> Self {
        Self { kind, size, zero: 0.0, names }
    }

    const fn degree(size: f64, zero: f64, names: &'static [[&'static str; 2]]) -> Self {
        Self { kind: TEMPERATURE, size, zero, names }
    }

    /// So much of this unit in another of its kind, rounded once.
    pub fn convert(&self, n: f64, to: &Unit) -> f64 {
        (n * self.size + (self.zero - to.zero)) / to.size
    }
}

/// 365.242198781 days in parts of 0.1 µs.
const YEAR: f64 = 315_569_259_746_784.0;

/// Every unit. `ton` is the metric one; gallon, quart, pint, cup and fluid ounce are those of the United States; a kilobyte has
/// 1000 bytes.
pub const UNITS: &[Unit] = &[
    // Parts of 1 µm.
    Unit::new("length", 1e3, &[["mm", "mm"], ["millimeter", "millimeters"], ["millimetre", "millimetres"]]),
    Unit::new("length", 1e4, &[["cm", "cm"], ["centimeter", "centimeters"], ["centimetre", "centimetres"]]),
    Unit::new("length", 1e6, &[["m", "m"], ["meter", "meters"], ["metre", "metres"]]),
    Unit::new("length", 1e9, &[["km", "km"], ["kilometer", "kilometers"], ["kilometre", "kilometres"]]),
    Unit::new("length", 25_400.0, &[["in", "in"], ["inch", "inches"]]),
    Unit::new("length", 304_800.0, &[["ft", "ft"], ["foot", "feet"]]),
    Unit::new("length", 914_400.0, &[["yd", "yd"], ["yard", "yards"]]),
    Unit::new("length", 1_609_344_000.0, &[["mi", "mi"], ["mile", "miles"]]),
    // Parts of 1 ng.
    Unit::new("mass", 1e6, &[["mg", "mg"], ["milligram", "milligrams"]]),
    Unit::new("mass", 1e9, &[["g", "g"], ["gram", "grams"]]),
    Unit::new("mass", 1e12, &[["kg", "kg"], ["kilogram", "kilograms"]]),
    Unit::new("mass", 1e15, &[["ton", "tons"], ["tonne", "tonnes"], ["metric ton", "metric tons"]]),
    Unit::new("mass", 28_349_523_125.0, &[["oz", "oz"], ["ounce", "ounces"]]),
    Unit::new("mass", 453_592_370_000.0, &[["lb", "lbs"], ["pound", "pounds"]]),
    // Parts of 0.1 µs.
    Unit::new("time", 1e7, &[["s", "s"], ["sec", "sec"], ["second", "seconds"]]),
    Unit::new("time", 6e8, &[["min", "min"], ["minute", "minutes"]]),
    Unit::new("time", 3.6e10, &[["h", "h"], ["hour", "hours"]]),
    Unit::new("time", 8.64e11, &[["day", "days"]]),
    Unit::new("time", 6.048e12, &[["week", "weeks"]]),
    Unit::new("time", YEAR / 12.0, &[["month", "months"]]),
    Unit::new("time", YEAR, &[["year", "years"]]),
    Unit::new("time", YEAR * 10.0, &[["decade", "decades"]]),
    Unit::new("time", YEAR * 100.0, &[["century", "centuries"]]),
    // Parts of 1/16 nl.
    Unit::new("volume", 16e3, &[["mm^3", "mm^3"], ["mm**3", "mm**3"], ["cubic millimeter", "cubic millimeters"]]),
    Unit::new("volume", 16e6, &[["cm^3", "cm^3"], ["cm**3", "cm**3"], ["cc", "cc"], ["cubic centimeter", "cubic centimeters"]]),
    Unit::new("volume", 16e6, &[["ml", "ml"], ["mL", "mL"], ["milliliter", "milliliters"], ["millilitre", "millilitres"]]),
    Unit::new("volume", 16e9, &[["l", "l"], ["L", "L"], ["liter", "liters"], ["litre", "litres"]]),
    Unit::new("volume", 16e12, &[["m^3", "m^3"], ["m**3", "m**3"], ["cubic meter", "cubic meters"]]),
    Unit::new("volume", 473_176_473.0, &[["fl oz", "fl oz"], ["fluid ounce", "fluid ounces"]]),
    Unit::new("volume", 3_785_411_784.0, &[["cup", "cups"]]),
    Unit::new("volume", 7_570_823_568.0, &[["pint", "pints"]]),
    Unit::new("volume", 15_141_647_136.0, &[["quart", "quarts"]]),
    Unit::new("volume", 60_566_588_544.0, &[["gallon", "gallons"]]),
    // Parts of 1/900 mm/s.
    Unit::new("speed", 900_000.0, &[["m/s", "m/s"], ["meter per second", "meters per second"], ["metre per second", "metres per second"]]),
    Unit::new(
        "speed",
        250_000.0,
        &[["km/h", "km/h"], ["kmh", "kmh"], ["kilometer per hour", "kilometers per hour"], ["kilometre per hour", "kilometres per hour"]],
    ),
    Unit::new("speed", 402_336.0, &[["mi/h", "mi/h"], ["mph", "mph"], ["mile per hour", "miles per hour"]]),
    Unit::new("speed", 274_320.0, &[["ft/s", "ft/s"], ["foot per second", "feet per second"]]),
    Unit::new("speed", 22_860.0, &[["in/s", "in/s"], ["inch per second", "inches per second"]]),
    // Bits.
    Unit::new("data", 1.0, &[["bit", "bits"]]),
    Unit::new("data", 8.0, &[["B", "B"], ["byte", "bytes"]]),
    Unit::new("data", 8e3, &[["KB", "KB"], ["kB", "kB"], ["kilobyte", "kilobytes"]]),
    Unit::new("data", 8e6, &[["MB", "MB"], ["M", "M"], ["megabyte", "megabytes"]]),
    Unit::new("data", 8e9, &[["GB", "GB"], ["G", "G"], ["gigabyte", "gigabytes"]]),
    Unit::new("data", 8e12, &[["TB", "TB"], ["terabyte", "terabytes"]]),
    // Parts of 1/180 K.
    Unit::degree(180.0, 0.0, &[["K", "K"], ["kelvin", "kelvins"]]),
    Unit::degree(180.0, 49_167.0, &[["C", "C"], ["°C", "°C"], ["degree C", "degrees C"], ["degree Celsius", "degrees Celsius"]]),
    Unit::degree(100.0, 45_967.0, &[["F", "F"], ["°F", "°F"], ["degree F", "degrees F"], ["degree Fahrenheit", "degrees Fahrenheit"]]),
];

/// Other units, and short names that can be something else: no question is made of them.
const OTHERS: [(&str, &[&str]); 4] = [
    ("length", &["hand", "hands", "hh", "fathom", "fathoms", "ftm", "chain", "chains", "ch"]),
    ("mass", &["t", "stone", "stones", "st"]),
    ("time", &["d", "wk", "mo", "yr", "dec", "cent"]),
    ("volume", &["teaspoon", "teaspoons", "tsp", "tablespoon", "tablespoons", "tbsp", "c", "pt", "qt", "gal"]),
];

/// Most words of a name.
const MOST_WORDS: usize = 3;

/// What the units of a question measure; `None` where no unit is in it.
pub fn kind(question: &str) -> Option<&'static str> {
    let found = named_in(question);
    let votes = |kind: &str| found.iter().filter(|(of, _)| *of == kind).map(|(_, votes)| votes).sum::<u32>();
    let best = KINDS.into_iter().rev().max_by_key(|kind| votes(kind))?; // of equals the first
    (votes(best) > 1).then_some(best)
}

/// Kinds of the units in a question, each with what its name says about it.
fn named_in(question: &str) -> Vec<(&'static str, u32)> {
    let words: Vec<&str> = question.split_whitespace().map(bare).collect();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < words.len() {
        let longest = (1..=MOST_WORDS.min(words.len() - at)).rev();
        let name = longest.into_iter().find_map(|count| Some((vote(&words[at..at + count].join(" "))?, count)));
        at += name.map_or(1, |(_, count)| count);
        found.extend(name.map(|(vote, _)| vote));
    }
    found
}

/// The kind of a name, and how much the name says about it: little where it can be something else.
fn vote(name: &str) -> Option<(&'static str, u32)> {
    let Some(unit) = named(name) else {
        let (kind, _) = OTHERS.iter().find(|(_, names)| names.contains(&name))?;
        return Some((kind, 1));
    };
    let votes = match unit.names[0][0] {
        "in" => 1, // a preposition
        "oz" => 2, // of a fluid, where the other unit is a volume
        _ => 3,
    };
    Some((unit.kind, votes))
}

/// A word without the number before it and the marks round it.
fn bare(word: &str) -> &str {
    word.trim_start_matches(|letter: char| letter.is_ascii_digit() || "([\"'.,-".contains(letter))
        .trim_end_matches(|letter: char| "?.,;:!)]\"'".contains(letter))
}

/// The unit of a name, in small letters if not as it stands.
fn named(name: &str) -> Option<&'static Unit> {
    let written = |name: &str| UNITS.iter().find(|unit| unit.names.as_flattened().contains(&name));
    written(name).or_else(|| written(&name.to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::lessons;
    use crate::text::tokenizer::tests::shared_data;
    use serde_json::Value;

    #[test]
    fn names_belong_to_one_unit_and_sizes_are_exact() {
        let names: Vec<&str> = UNITS.iter().flat_map(|unit| unit.names.as_flattened()).copied().collect();
        for name in names {
            let owners = UNITS.iter().filter(|unit| unit.names.as_flattened().contains(&name)).count();
            assert!(owners == 1 && name.split(' ').count() <= MOST_WORDS && bare(name) == name, "{name}");
        }
        for (kind, names) in OTHERS {
            assert!(KINDS.contains(&kind) && names.iter().all(|name| named(name).is_none() && bare(name) == *name), "{kind}");
        }
        for unit in UNITS {
            assert!(KINDS.contains(&unit.kind) && unit.size > 0.0 && unit.size.fract() == 0.0, "{unit:?}");
            // Ten times the size is exact, too: a conversion rounds once.
            assert_eq!((unit.size * 10.0) as u128, unit.size as u128 * 10, "{unit:?}");
        }
    }

    #[track_caller]
    fn converts(n: f64, from: &str, to: &str, expected: f64) {
        let (from, to) = (named(from).unwrap(), named(to).unwrap());
        assert_eq!(from.kind, to.kind);
        assert_eq!(from.convert(n, to), expected);
    }

    #[test]
    fn conversions_are_exact() {
        converts(6.0, "l", "cm^3", 6000.0);
        converts(8.0, "ft", "in", 96.0);
        converts(1.0, "mi", "yd", 1760.0);
        converts(1.0, "in", "cm", 2.54);
        converts(1.0, "lb", "kg", 0.453_592_37);
        converts(16.0, "oz", "lb", 1.0);
        converts(1.0, "ton", "kg", 1000.0);
        converts(1.0, "year", "day", 365.242_198_781);
        converts(1.0, "month", "day", 365.242_198_781 / 12.0);
        converts(1.0, "century", "month", 1200.0);
        converts(3.0, "day", "h", 72.0);
        converts(1.0, "gallon", "l", 3.785_411_784);
        converts(1.0, "gallon", "cup", 16.0);
        converts(1.0, "gallon", "fl oz", 128.0);
        converts(4.0, "quart", "pint", 8.0);
        converts(1.0, "m^3", "mm^3", 1e9);
        converts(6.0, "mph", "in/s", 105.6);
        converts(1.0, "m/s", "km/h", 3.6);
        converts(1.0, "ft/s", "m/s", 0.3048);
        converts(4.0, "KB", "bit", 32_000.0);
        converts(1.0, "G", "M", 1000.0);
        converts(1.0, "TB", "GB", 1000.0);
        converts(5.0, "C", "F", 41.0);
        converts(5.0, "F", "C", -15.0);
        converts(0.0, "C", "K", 273.15);
        converts(0.0, "K", "F", -459.67);
        converts(10.0, "K", "C", -263.15);
    }

    #[test]
    fn factors_are_those_of_the_reference() {
        let Some(path) = shared_data("unit-conversion/derived_factors.json") else { return };
        let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let factors = file["factors"].as_object().unwrap();
        assert_eq!(factors.len(), 355);
        for (pair, factor) in factors {
            let (from, to) = pair.split_once(" -> ").unwrap();
            let [mut from, mut to] = [from, to].map(|name| named(name).unwrap_or_else(|| panic!("{name}")));
            // Its `ounce` is a mass or a volume, as the other unit is.
            if from.kind != to.kind {
                let fluid = named("fluid ounce").unwrap();
                [from, to] = [from, to].map(|unit| if unit.names[0][0] == "oz" { fluid } else { unit });
            }
            assert_eq!(from.kind, to.kind, "{pair}");
            let (found, expected) = (from.convert(1.0, to), factor.as_f64().unwrap());
            assert!((found / expected - 1.0).abs() < 1e-9, "{pair}: {found} {expected}"); // ten digits are given
        }
    }

    #[track_caller]
    fn measures(question: &str, expected: Option<&str>) {
        assert_eq!(kind(question), expected, "{question}");
    }

    #[test]
    fn questions_tell_what_they_measure() {
        measures("How many in are there per 8 ft?", Some("length"));
        measures("What is 7 kg in ounce?", Some("mass"));
        measures("How much is 5 lb in in?", Some("mass"));
        measures("How many cm^3 is 10 ounce?", Some("volume"));
        measures("What is 3 ounces in grams?", Some("mass"));
        measures("Please convert 3 fluid ounces into ounces.", Some("volume"));
        measures("Express 3 m/s in miles per hour.", Some("speed"));
        measures("How many miles are in 5 km?", Some("length"));
        measures("What does 2 G equal in M terms?", Some("data"));
        measures("What does 2 g equal in kg terms?", Some("mass"));
        measures("How long are 5 m (in inches)?", Some("length"));
        measures("5km, 7Miles", Some("length"));
        measures("Convert 20°C to Fahrenheit", Some("temperature"));
        measures("Convert 20 C to F.", Some("temperature"));
        measures("Give 3 Weeks in DAYS!", Some("time"));
        measures("How many cups are in 2 sips?", Some("volume"));
        measures("How many lines are there per 8 hours", Some("time"));
        measures("What is 5 gal in qt?", Some("volume"));
        measures("How many c are there in 3 pt?", Some("volume"));
        measures("Express 7 wk in d.", Some("time"));
        measures("4 stones is how many lb?", Some("mass"));
        measures("What is 9 hh in in?", Some("length"));
        measures("Convert 30 c to f.", None); // a cup alone says too little
        measures("What is 2 + 3 in binary?", None);
        measures("Who are you?", None);
        measures("", None);
    }

    #[test]
    fn every_question_of_the_lessons_measures_something() {
        for part in lessons::questions(1, 1, [1000, 150]) {
            let questions: Vec<(String, f64)> = serde_json::from_str(&part).unwrap();
            assert!(questions.iter().all(|(question, _)| kind(question).is_some_and(|kind| kind != "speed" && kind != TEMPERATURE)));
        }
    }

    #[test]
    fn every_question_of_the_reference_measures_something() {
        let Some(path) = shared_data("unit-conversion/train.json") else { return };
        let questions: Vec<(String, f64)> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut counts = std::collections::BTreeMap::new();
        for (question, _) in &questions {
            *counts.entry(kind(question).unwrap_or_else(|| panic!("{question}"))).or_insert(0) += 1;
        }
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), ["data", "length", "mass", "speed", "time", "volume"], "{counts:?}");
    }
}
