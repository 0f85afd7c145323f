//! Tasks with one right answer to every question: what a shell asks for, and what it is told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reports::number_or_nan;

/// What is to be done with a task. Settings come from the [`ReasonConfig`](crate::config::reason::ReasonConfig) beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum ReasonVerb {
    /// Write questions to learn from and to be tested on into a folder.
    MakeData {
        /// The folder: `train.json` and `valid.json`.
        out: String,
    },
    /// Ask the student with worked examples before every question.
    Cot {
        /// Its questions.
        data: String,
    },
    /// Teach the student answers, and test it.
    Sft {
        /// Its questions.
        data: String,
        /// Folder of the run.
        out: String,
        /// Continue from the last good checkpoint.
        resume: bool,
    },
    /// Let the teacher answer every question several times, and keep what is right.
    Rollout {
        /// The questions.
        data: String,
        /// JSON file of [question, answer, reasoning] to write.
        out: String,
    },
    /// List the questions of a rollout without a right sample: [`Event::Rejected`](super::Event::Rejected).
    Rejects {
        /// What the rollout wrote.
        data: String,
    },
    /// Put reasoning that people wrote into a rollout's rows, for a question without a right sample.
    Mend {
        /// What the rollout wrote.
        data: String,
        /// The question.
        question: String,
        /// The reasoning; its answer must be right.
        reasoning: String,
    },
    /// Teach the student reasoning, and test it.
    Rft {
        /// What a rollout wrote.
        data: String,
        /// Folder of the run.
        out: String,
        /// Continue from the last good checkpoint.
        resume: bool,
    },
    /// Ask an adapter's model the questions of a test.
    Test {
        /// Folder or run of the adapter; none: the student itself.
        adapter: Option<String>,
        /// The questions.
        data: String,
    },
    /// Grade as the reference does.
    Grade {
        /// Questions of the test.
        data: String,
        /// A submission: a `.zip` or a folder that holds `sft_model` and `rft_model`.
        submission: Option<String>,
        /// Adapters, where there is no submission: answers and reasoning.
        sft: Option<String>,
        /// See `sft`.
        rft: Option<String>,
    },
    /// Write a submission.
    Bundle {
        /// Adapter that gives answers.
        sft: String,
        /// Adapter that gives reasoning.
        rft: String,
        /// A folder whose files go along, such as a course's Python files.
        folder: Option<String>,
        /// The `.zip` to write.
        out: String,
    },
    /// All of it in order, what is done already left out.
    Run,
}

/// How many answers there were, and how many of them were right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Questions.
    pub asked: u64,
    /// Those with an answer that is a number.
    pub answered: u64,
    /// Those with the right answer.
    pub right: u64,
}

impl Tally {
    /// Share of the questions that were answered rightly.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.asked.max(1) as f64
    }

    /// Share of the questions that were answered by a number.
    pub fn answer_rate(&self) -> f64 {
        self.answered as f64 / self.asked.max(1) as f64
    }

    /// Counts one question.
    pub fn add(&mut self, answered: bool, right: bool) {
        self.asked += 1;
        self.answered += u64::from(answered);
        self.right += u64::from(right);
    }
}

/// A question, and what a model wrote.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The question.
    pub question: String,
    /// Its answer.
    #[serde(deserialize_with = "number_or_nan")]
    pub expected: f64,
    /// The number that was found in the text; NaN (`null` in JSON): none.
    #[serde(deserialize_with = "number_or_nan")]
    pub found: f64,
    /// Whether that is right.
    pub right: bool,
    /// What the model wrote.
    pub text: String,
}

/// How a model did in a test.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TestReport {
    /// `cot`, `sft`, `rft` or `base`.
    pub what: String,
    /// All questions.
    pub all: Tally,
    /// By kind of unit.
    pub kinds: BTreeMap<String, Tally>,
    /// All replies in the order of the questions.
    pub replies: Vec<Reply>,
    /// New tokens.
    pub tokens: u64,
    /// Seconds that it took, loading left out.
    #[serde(deserialize_with = "number_or_nan")]
    pub secs: f64,
}

/// What has become of the samples of a rollout so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FunnelReport {
    /// Questions in all.
    pub questions: u64,
    /// Those whose samples are complete.
    pub done: u64,
    /// Samples per question.
    pub per_question: u64,
    /// Samples drawn.
    pub samples: u64,
    /// Those that hold a number as their answer.
    pub answered: u64,
    /// Those with the right answer.
    pub right: u64,
    /// Rows kept.
    pub kept: u64,
    /// Right ones that were the same as one that was kept.
    pub duplicates: u64,
    /// Questions with at least one right sample.
    pub solved: u64,
    /// Mean share of right samples: the chance that one is right.
    #[serde(deserialize_with = "number_or_nan")]
    pub pass_at_1: f64,
    /// By kind of unit: questions done, with any number, solved.
    pub kinds: BTreeMap<String, Tally>,
    /// New tokens of this session.
    pub tokens: u64,
    /// Seconds of this session.
    #[serde(deserialize_with = "number_or_nan")]
    pub secs: f64,
    /// Seconds to go.
    #[serde(deserialize_with = "number_or_nan")]
    pub eta_secs: f64,
}

impl FunnelReport {
    /// Share of the questions that at least one of all samples solves.
    pub fn pass_at_k(&self) -> f64 {
        self.solved as f64 / self.done.max(1) as f64
    }
}

/// A question that no sample of a rollout answers rightly.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reject {
    /// The question.
    pub question: String,
    /// Its answer.
    #[serde(deserialize_with = "number_or_nan")]
    pub expected: f64,
    /// What the teacher wrote.
    pub samples: Vec<String>,
}

/// A part of the grade.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GradeCase {
    /// What was looked at.
    pub name: String,
    /// Points.
    pub score: u32,
    /// Most points, extra credit left out.
    pub points: u32,
    /// Loss or accuracy, as far as there is one.
    #[serde(deserialize_with = "number_or_nan")]
    pub value: f64,
    /// What else there is to say: the answer rate, or why there are no points.
    pub remark: String,
    /// Seconds that it took.
    #[serde(deserialize_with = "number_or_nan")]
    pub secs: f64,
}

/// The table of a grade.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GradeReport {
    /// Its parts in order.
    pub cases: Vec<GradeCase>,
}

impl GradeReport {
    /// All points.
    pub fn score(&self) -> u32 {
        self.cases.iter().map(|case| case.score).sum()
    }

    /// What they are out of.
    pub fn points(&self) -> u32 {
        self.cases.iter().map(|case| case.points).sum()
    }
}

/// A quantity and what it may be at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Capped {
    /// How much there is, or will be.
    pub used: u64,
    /// How much there may be.
    pub cap: u64,
}

impl Capped {
    /// Whether it is within its cap.
    pub fn fits(&self) -> bool {
        self.used <= self.cap
    }
}

/// What limits a task's adapters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BudgetReport {
    /// Parameters of the student with its larger adapter.
    pub parameters: Capped,
    /// Bytes of both adapters before they are compressed.
    pub bundle_bytes: Capped,
    /// Bytes of the device that training the larger adapter takes; no cap is known where that is 0.
    pub device_bytes: Capped,
    /// Ranks of the adapters: answers, reasoning.
    pub ranks: [usize; 2],
    /// The largest rank that fits the parameters, and the largest that fits the bundle twice.
    pub largest_ranks: [usize; 2],
}
