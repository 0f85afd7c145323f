//! The program as a user meets it: bad input gets one line and a code, good input a model.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use smolforge_engine::protocol::Event;

/// A folder of its own for a test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).expect("a file for the test");
    }

    /// The program in this folder, its words separated by spaces; `…` stands for a space inside a word.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smolforge"));
        command.args(line.split_whitespace().map(|word| word.replace('…', " ")));
        command.current_dir(&self.0).env_remove("SMOLFORGE_DEBUG").env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("the program starts")
    }

    /// Events of a job that must succeed.
    #[track_caller]
    fn events(&self, line: &str) -> Vec<Event> {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "{line}: {output:?}");
        let events = events(&output);
        assert!(matches!(events.first(), Some(Event::Started { .. })), "{line}: {:?}", events.first());
        assert!(matches!(events.last(), Some(Event::Done { .. })), "{line}: {:?}", events.last());
        events
    }

    /// The job must fail with one line that holds these words, and its last event must say the same.
    #[track_caller]
    fn refused(&self, line: &str, words: &[&str]) {
        let output = self.run(&format!("{line} --json"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 2)), "{line}: exit code {code:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "{line}: not one line:\n{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("internal error"), "{line}: {stderr}");
        for word in words {
            assert!(stderr.to_lowercase().contains(word), "{line}: {word:?} is not in: {stderr}");
        }
        if let Some(last) = events(&output).last() {
            assert!(matches!(last, Event::Failed { .. }), "{line}: {last:?}");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Standard output of `--json`: every line is an event.
#[track_caller]
fn events(output: &Output) -> Vec<Event> {
    let text = String::from_utf8(output.stdout.clone()).expect("JSON is UTF-8");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// A model that is trained in seconds.
const TINY: &str = "--device cpu --preset nano --tokenizer-vocab-size 300 --batch-size 2 --accumulation 1 \
    --sequence-length 32 --warmup-steps 1 --eval-tokens 256 --sample-tokens 4";

fn story(folder: &Folder) {
    let line = |day: usize| format!("On day {day} the smith forged {} small nails and sang of iron.\n", day * 7 % 31);
    folder.write("story.txt", &(0..800).map(line).collect::<String>());
}

#[test]
fn no_verb_opens_a_window_and_without_a_display_is_one_line() {
    let output = Folder::new("none").command("").env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("error: no window could be opened (") && stderr.trim_end().lines().count() == 1, "{stderr}");
    assert!(stderr.trim_end().ends_with("; smolforge --help lists the verbs of the command line"), "{stderr}");
}

#[test]
fn wrong_usage_is_code_2_and_names_what_was_meant() {
    let folder = Folder::new("usage");
    for (line, word) in [
        ("trian", "'train'"),
        ("train --bach-size 3", "--batch-size"),
        ("train --steps many", "--steps many"),
        ("train --steps -5", "--steps -5"),
        ("train --lr nan", "--lr nan"),
        ("train --device tpu", "--device tpu"),
        ("train --source story.txt", "name=path"),
        ("train a.yaml b.yaml", "b.yaml"),
        ("generate", "--model"),
        ("generate --model m", "--prompt-file"),
        ("generate --model m --prompt a --prompt-file b", "--prompt-file"),
        ("generate --model m --prompt a --top-k -1", "--top-k"),
        ("generate --model m --prompt a --stop=", "--stop"),
        ("export --run a --out b --step soon", "last, best"),
        ("export --run a --out b --dtype int4", "f16"),
        ("bench --precision f64", "mixed"),
    ] {
        let output = folder.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert_eq!(output.status.code(), Some(2), "{line}: {stderr}");
        assert!(stderr.contains(word) && !stderr.contains("panicked"), "{line}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.trim_end().lines().count() == 1, "{line}: not one line:\n{stderr}");
        assert!(output.stdout.is_empty(), "{line}: {output:?}");
    }
}

#[test]
fn a_bad_configuration_gets_one_line() {
    let folder = Folder::new("config");
    story(&folder);
    folder.write("typo.yaml", "steps: 3\nbach_size: 2\nsources: {input: story.txt}\n");
    folder.write("nan.yaml", "lr: .nan\nsources: {input: story.txt}\n");
    folder.write("broken.yaml", "steps: [1\n");
    folder.write("list.yaml", "- a\n- b\n");
    fs::write(folder.0.join("binary.yaml"), [0xffu8, 0xfe, 0, 1]).expect("written");
    folder.refused("train absent.yaml", &["absent.yaml", "no such file"]);
    folder.refused("train typo.yaml", &["typo.yaml", "bach_size", "did you mean `batch_size`"]);
    folder.refused("train nan.yaml", &["lr", "nan"]);
    folder.refused("train nan.yaml --steps 3 --min-lr 1e-5", &["--lr", "nan"]);
    folder.refused("train broken.yaml", &["broken.yaml", "line"]);
    folder.refused("train list.yaml", &["list.yaml"]);
    folder.refused("train binary.yaml", &["binary.yaml", "utf-8"]);
    folder.refused("train .", &["."]);
    folder.refused("train", &["no sources", "--source"]);
    let train = format!("train {TINY} --out run --source input=story.txt");
    for (flags, words) in [
        ("--lr -1", ["--lr", "-1"]),
        ("--lr 1e9", ["--lr", "between"]),
        ("--lr 1e-4 --min-lr 1e-3", ["--min-lr", "between"]),
        ("--lr .inf", ["--lr", "inf"]),
        ("--steps 0", ["--steps", "between"]),
        ("--accumulation 0", ["--accumulation", "between"]),
        ("--held-out 2", ["--held-out", "between"]),
        ("--preset nanno", ["nanno", "did you mean `nano`"]),
        ("--init absent", ["absent", "no such file"]),
        ("--tokenizer absent.json", ["absent.json", "no such file"]),
        ("--tokenizer story.txt", ["story.txt", "tokenizer"]),
        ("--source code=absent.py", ["absent.py", "no such file"]),
        ("--data-stages [{weights:…{input:…0.5}}]", ["sum to 1", "0.5"]),
        ("--data-stages [{weights:…{inptu:…1}}]", ["inptu", "did you mean"]),
        ("--data-stages [{weights:…{input:…1}},{start_training_step:…0,weights:…{input:…1}}]", ["stage", "start"]),
        ("--mix-changes [{step:…1,stage:…0,weights:…{inptu:…1}}]", ["mix_changes: step 1", "did you mean"]),
        ("--mix-changes [{step:…9999,stage:…0,weights:…{input:…1}}]", ["mix_changes: step 9999", "ends at step"]),
        ("--data-stages nowhere.yaml", ["--data-stages", "stages"]),
    ] {
        folder.refused(&format!("{train} {flags}"), &words);
    }
    assert!(!folder.0.join("run/config.yaml").exists(), "a refused run leaves no run behind");
}

#[test]
fn missing_files_get_one_line_from_every_verb() {
    let folder = Folder::new("missing");
    story(&folder);
    folder.write("empty.txt", "");
    folder.write("blank.txt", "\n  \n");
    fs::create_dir_all(folder.0.join("hollow")).expect("a folder");
    for (line, words) in [
        ("generate --device cpu --model absent --prompt a", ["absent", ""]),
        ("generate --device cpu --model hollow --prompt a", ["hollow", "config.json"]),
        ("generate --device cpu --model hollow --prompt-file absent.txt", ["absent.txt", "no such file"]),
        ("generate --device cpu --model hollow --prompt-file blank.txt", ["blank.txt", "no prompt"]),
        ("eval --device cpu --model absent --text story.txt", ["absent", ""]),
        ("tokenize --tokenizer absent.json story.txt", ["absent.json", "no such file"]),
        ("tokenize --tokenizer story.txt story.txt", ["story.txt", "tokenizer"]),
        ("train-tokenizer absent.txt --out t.json", ["absent.txt", "no such file"]),
        ("train-tokenizer empty.txt --out t.json", ["empty.txt", ""]),
        ("train-tokenizer blank.txt --out t.json", ["white space", ""]),
        ("train-tokenizer story.txt --vocab-size 3 --out t.json", ["3", ""]),
        ("export --run absent --out hf", ["absent", ""]),
        ("generate --device cpu --model hollow --prompt a --alternatives 21", ["--alternatives 21", "20"]),
        ("runs delete hollow --yes", ["hollow", "is no run"]),
        ("pack hollow --out x.zip", ["hollow", "neither a run nor a model"]),
        ("unpack absent.zip --out x", ["absent.zip", "no such file"]),
        ("unpack story.txt --out x", ["story.txt", "no whole .zip"]),
        ("unpack story.txt --out hollow", ["hollow", "exists already"]),
        ("train --resume --out absent", ["absent", "no run to resume"]),
        ("plan absent.yaml", ["absent.yaml", "no such file"]),
        ("finetune --model hollow --train-file absent.jsonl", ["hollow", "config.json"]),
        ("finetune --model absent", ["--train-file", ""]),
        ("finetune absent.yaml", ["absent.yaml", "no such file"]),
        ("finetune rows.jsonl", ["rows.jsonl", "--train-file rows.jsonl"]),
        ("finetune --resume --output-dir hollow", ["hollow", "no fine-tuning run"]),
        ("finetune --r 0 --model hollow --train-file story.txt", ["--r 0", ""]),
        ("inspect absent.jsonl --model hollow", ["hollow", "config.json"]),
        ("inspect absent.jsonl", ["--model", ""]),
        ("chat --device cpu --model hollow", ["hollow", "config.json"]),
        ("chat --device cpu --model hollow --adapter absent", ["absent", "adapter_config.json"]),
        ("merge --model hollow --adapter absent --out m", ["hollow", "config.json"]),
        ("eval --device cpu --model hollow --data absent.jsonl", ["hollow", "config.json"]),
        ("bench --device cpu --preset nanno", ["nanno", "nano"]),
        ("bench --device cpu --preset nano --batch 0", ["batch", "0"]),
        ("demo --device cpu --steps 0 --out demo", ["steps", "0"]),
    ] {
        folder.refused(line, &words);
    }
}

#[test]
fn devices_are_listed_for_people_and_for_programs() {
    let folder = Folder::new("devices");
    let automatic = folder.events("devices").into_iter().filter(|event| matches!(event, Event::Device(device) if device.auto));
    assert_eq!(automatic.count(), 1, "auto takes exactly one device");
    let output = folder.run("devices");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("largest binding") && table.contains("--device auto"), "{table}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let folder = Folder::new("pipe");
    let mut child = folder.command("devices --json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_small_run_goes_from_text_to_generated_text() {
    let folder = Folder::new("small");
    story(&folder);
    folder.events(&format!("plan {TINY} --steps 4 --source input=story.txt"));
    let events = folder.events(&format!("train {TINY} --steps 4 --out run --source input=story.txt"));
    let steps = events.iter().filter(|event| matches!(event, Event::Step(_))).count();
    assert_eq!(steps, 4);
    folder.refused(&format!("train {TINY} --resume --out run --lr 0.5"), &["lr"]);

    let wrote = folder.events("export --run run --out hf");
    assert!(wrote.iter().any(|event| matches!(event, Event::Wrote { .. })), "{wrote:?}");
    for file in ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"] {
        assert!(folder.0.join("hf").join(file).is_file(), "{file} is missing");
    }

    folder.events("generate --device cpu --model run --prompt On --max-new-tokens 2");
    let generate = "generate --device cpu --model hf --prompt On…day";
    let text = |line: &str| {
        let output = folder.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).expect("whole characters")
    };
    let first = text(&format!("{generate} --max-new-tokens 5 --greedy"));
    assert_eq!(text(&format!("{generate} --max-new-tokens 5 --temperature 0")), first, "temperature 0 is greedy");
    assert_eq!(text(&format!("{generate} --max-new-tokens 5 --greedy --echo")), format!("On day{first}"), "the prompt comes first");
    let events = folder.events(&format!("{generate} --max-new-tokens 5 --num-samples 2 --prompt The"));
    let samples = events.iter().filter(|event| matches!(event, Event::Generated { .. })).count();
    assert_eq!(samples, 4, "two prompts, two samples each");
    let table = text(&format!("{generate} --max-new-tokens 3 --greedy --alternatives 2"));
    assert!(table.contains("probability") && table.lines().filter(|line| line.contains(" %")).count() == 3, "{table}");
    let room = folder.run(&format!("{generate} --max-new-tokens 100000 --greedy"));
    assert!(room.status.success() && String::from_utf8_lossy(&room.stderr).contains("has room for"), "{room:?}");
    for flags in ["--temperature nan", "--temperature -1", "--top-p 2", "--min-p -0.5", "--repetition-penalty 0", "--num-samples 0"] {
        let flag = flags.split_whitespace().next().expect("a flag");
        folder.refused(&format!("{generate} {flags}"), &[flag]);
    }

    let scores = folder.run("eval --device cpu --model hf --text story.txt");
    let table = String::from_utf8_lossy(&scores.stdout);
    assert!(table.contains("bits/byte") && table.contains("story.txt"), "{table}");
    let counts = folder.run("tokenize --tokenizer hf story.txt");
    assert!(String::from_utf8_lossy(&counts.stdout).contains("bytes/token"), "{counts:?}");
}

#[test]
fn a_model_is_fine_tuned_asked_and_merged() {
    let folder = Folder::new("tune");
    story(&folder);
    folder.events(&format!("train {TINY} --steps 4 --out base --source input=story.txt"));
    let row = |i: usize| format!("{{\"prompt\":\"[SPEC] part {i}? \",\"completion\":\"{} mm\"}}\n", i % 3);
    folder.write("rows.jsonl", &(0..12).map(row).collect::<String>());
    folder.write("tune.yaml", "huggingface: { model_name: base, train_file: rows.jsonl, max_seq_length: 32 }\nqlora: { r: 4 }\ntraining: { num_epochs: 2, learning_rate: 2e-3, device: cpu, output_dir: tuned, sample_tokens: 3 }\n");

    let plan = folder.events("plan tune.yaml");
    assert!(plan.iter().any(|event| matches!(event, Event::Plan(plan) if plan.sources.contains_key("spec"))), "{plan:?}");
    folder.refused("plan tune.yaml --steps 3", &["--budget"]);
    folder.refused("plan tune.yaml --num-epochs 3", &["--num-epochs", "--budget"]);
    let seen = folder.run("inspect tune.yaml --show 1");
    let text = String::from_utf8_lossy(&seen.stdout);
    assert!(seen.status.success() && text.contains("⟦0 mm<|endoftext|>⟧") && text.contains("stop token"), "{seen:?}");
    let events = folder.events("finetune tune.yaml");
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Step(_))).count(), 4, "11 rows in micro-batches of 8, twice");
    folder.refused("finetune tune.yaml", &["there is a run already"]);
    folder.events("finetune --resume --output-dir tuned");
    folder.events("generate --device cpu --model base --adapter tuned:0.5 --prompt On --max-new-tokens 2");
    let scores = folder.run("eval --device cpu --model base --adapter tuned --data rows.jsonl --questions 2 --max-new-tokens 4");
    let table = String::from_utf8_lossy(&scores.stdout);
    assert!(scores.status.success() && table.contains("accuracy") && table.contains("exact"), "{scores:?}");
    folder.events("merge --model base --adapter tuned --out merged");
    folder.events("generate --device cpu --model merged --prompt On --max-new-tokens 2");
    folder.refused("generate --device cpu --model base --adapter base --prompt On", &["adapter_config.json"]);
    let chat = "chat --device cpu --model base --adapter tuned --greedy --max-new-tokens 3";
    let mut chat = folder.command(chat).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let long = "iron and nails ".repeat(9000);
    let said = format!("Hi\n/undo\nHo\n{long}\nHa\n/quit\n");
    chat.stdin.take().expect("piped").write_all(said.as_bytes()).expect("written");
    let output = chat.wait_with_output().expect("ended");
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).lines().count() >= 3, "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("context") && stderr.contains("the question is taken back"), "{stderr}");
    let scored = "eval --device cpu --model base --data rows.jsonl --questions 0 --loss-on all --dataset-format prompt_completion";
    folder.events(scored);
    folder.refused(&format!("{scored} --columns {{promt:…text}}"), &["--columns promt", "did you mean prompt?"]);
    folder.refused(&format!("{scored} --loss-on nothing"), &["--loss-on nothing"]);
}

#[test]
fn a_run_is_listed_packed_moved_resumed_and_removed() {
    let (folder, other) = (Folder::new("pack"), Folder::new("unpack"));
    story(&folder);
    folder.events(&format!("train {TINY} --steps 4 --out runs/a --source input=story.txt"));
    folder.events("pack runs/a --out a.zip");
    fs::rename(folder.0.join("a.zip"), other.0.join("a.zip")).expect("moved");
    other.events("unpack a.zip --out b");
    other.events("train --resume --out b"); // there is nothing left to do, and no text to do it with
    let listed = other.run("runs");
    let table = String::from_utf8_lossy(&listed.stdout);
    assert!(table.contains("finished") && table.lines().count() == 2, "{table}");

    let asked = folder.run("runs delete runs/a");
    assert_eq!(asked.status.code(), Some(2), "nobody is there to ask: {asked:?}");
    folder.events("runs delete runs/a --yes");
    assert!(!folder.0.join("runs/a").exists() && folder.0.join("story.txt").exists());
}

#[test]
fn plans_tell_what_makes_them_fit() {
    let folder = Folder::new("budget");
    story(&folder);
    let plan = format!("plan {TINY} --batch-size 16 --accumulation 2 --sequence-length 64 --steps 4 --source input=story.txt");
    let of = |line: &str| {
        folder.events(line).into_iter().find_map(|event| if let Event::Plan(plan) = event { Some(plan) } else { None }).expect("a plan")
    };
    let whole = of(&plan);
    assert_eq!(whole.suggestion, None);
    let budget = whole.peak_bytes - 1;
    let fitting = of(&format!("{plan} --budget {budget}"));
    let keys = fitting.suggestion.expect("a smaller batch helps");
    let flags: Vec<String> = keys.iter().map(|(key, value)| format!("--{} {value}", key.replace('_', "-"))).collect();
    let smaller = of(&format!("{plan} --budget {budget} {}", flags.join(" ")));
    assert!(smaller.peak_bytes <= budget && smaller.suggestion.is_none() && smaller.tokens == whole.tokens, "{smaller:?}");
    let shown = folder.run(&format!("{plan} --budget {budget}"));
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&format!("to make it fit: {}", flags.join(" "))));
}

#[test]
fn the_cpu_passes_its_self_test() {
    let output = Folder::new("self-test").run("self-test --device cpu");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && table.contains("rms_norm_dw") && !table.contains("FAILED"), "{output:?}");
}

/// Reads events until one is wanted; the child must not end before.
#[cfg(unix)]
fn wait_for(lines: &mut impl Iterator<Item = std::io::Result<String>>, wanted: impl Fn(&Event) -> bool) -> Event {
    loop {
        let line = lines.next().expect("another event").expect("readable output");
        let event: Event = serde_json::from_str(&line).expect("an event a line");
        assert!(!matches!(event, Event::Failed { .. }), "{event:?}");
        if wanted(&event) {
            return event;
        }
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_and_resumes_where_it_stopped() {
    let folder = Folder::new("interrupt");
    story(&folder);
    let train = format!("train {TINY} --steps 100000 --eval-every 0 --sample-every 0 --out run --source input=story.txt --json");
    let mut reached = 0;
    for line in [train.as_str(), "train --resume --out run --json"] {
        let mut child = folder.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut events = BufReader::new(child.stdout.take().expect("piped")).lines();
        let Event::Run(run) = wait_for(&mut events, |event| matches!(event, Event::Run(_))) else { unreachable!() };
        assert_eq!(run.step, reached, "continues after the last update that was made");
        wait_for(&mut events, |event| matches!(event, Event::Step(_)));
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
        assert!(killed.success());
        let Event::Saved { step, .. } = wait_for(&mut events, |event| matches!(event, Event::Saved { .. })) else { unreachable!() };
        let Event::Done { hints, stopped } = wait_for(&mut events, |event| matches!(event, Event::Done { .. })) else { unreachable!() };
        assert!(stopped && hints.iter().any(|hint| hint.contains("--resume")), "{hints:?}");
        let status = child.wait().expect("the program ends");
        assert_eq!(status.code(), Some(0));
        assert!(step > reached, "{step} updates were made, {reached} before");
        reached = step;
    }
}

#[test]
fn prompts_come_from_standard_input_too() {
    let folder = Folder::new("stdin");
    let mut child = folder
        .command("generate --device cpu --model absent --prompt-file -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("piped").write_all(b"one\ntwo\n").expect("read by the program");
    let output = child.wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("absent"), "the prompts were read, the model is missing: {stderr}");
}
