//! Runs and models as one file: there and back, and what hostile files try.

use futures_lite::future::block_on;
use smolforge_engine::control::Control;
use smolforge_engine::data::tokens::{Counts, TokenWriter};
use smolforge_engine::data::vocabulary;
use smolforge_engine::error::Result;
use smolforge_engine::protocol::Event;
use smolforge_engine::store::Store;
use smolforge_engine::tasks::{pack, unpack};
use smolforge_engine::text::Tokenizer;
use smolforge_engine::train::{checkpoint, runs};
use smolforge_tests::cpu;

use crate::run_tests::{resume, run, small_run, weights, whole_run};

fn packed(store: &Store, folder: &str) -> Vec<u8> {
    block_on(store.remove("x.zip")).unwrap();
    block_on(pack::run(folder, "x.zip", store, &Control::connect().0)).unwrap();
    block_on(store.read("x.zip")).unwrap().to_vec()
}

/// Unpacks these bytes in a store of their own.
fn unpacked(bytes: &[u8], out: &str) -> (Store, Result<()>) {
    let store = Store::memory();
    block_on(store.write("x.zip", bytes)).unwrap();
    let result = block_on(unpack::run("x.zip", out, &store, &Control::connect().0)).map(drop);
    (store, result)
}

#[test]
fn a_run_goes_on_elsewhere_without_its_texts() {
    cpu();
    let (store, config) = small_run(8);
    let (whole_store, whole) = whole_run(&config);
    run(&store, &config, false, Some(4)).0.unwrap();
    let zip = packed(&store, "runs/small/");
    assert_eq!(packed(&store, "runs/small"), zip, "the same folder gives the same bytes");

    let (elsewhere, result) = unpacked(&zip, "moved/here");
    result.unwrap();
    let Event::Opened { config, .. } = block_on(runs::open(&elsewhere, "moved/here")).unwrap() else { panic!("another event") };
    assert_eq!(config.out, "moved/here");
    resume(&elsewhere, &config, &whole);
    let last = block_on(elsewhere.read(&format!("{}/model.safetensors", checkpoint::folder("moved/here", 8)))).unwrap().to_vec();
    assert_eq!(last, weights(&whole_store, 8), "byte for byte the run that never moved");

    // And back again: what was unpacked packs and resumes like any other run.
    let (back, result) = unpacked(&packed(&elsewhere, "moved/here"), "runs/small");
    result.unwrap();
    assert_eq!(weights(&back, 8), weights(&whole_store, 8));
    assert!(block_on(back.exists("runs/small/tokens")));

    // Without texts and without tokens there is nothing to go on with.
    let (bare, result) = unpacked(&zip, "moved/here");
    result.unwrap();
    block_on(bare.remove("moved/here/tokens")).unwrap();
    let error = run(&bare, &config, true, None).0.unwrap_err().to_string();
    assert!(error.contains("source code") && error.contains("put the text there again"), "{error}");
}

#[test]
fn tokens_that_a_run_brought_are_not_believed_either() {
    cpu();
    let (store, config) = small_run(6);
    run(&store, &config, false, Some(3)).0.unwrap();
    let zip = packed(&store, "runs/small");
    let (elsewhere, _) = unpacked(&zip, "runs/small");
    let files = block_on(elsewhere.list("runs/small/tokens")).unwrap();
    assert_eq!(files.len(), 6, "two files of three sources");
    // The shard of another source under the name of this one, and a damaged one.
    let bytes = |at: usize| block_on(elsewhere.read(&files[at].name)).unwrap().to_vec();
    let (first, other) = (bytes(1), bytes(3));
    let tokenizer = block_on(Tokenizer::load(&elsewhere, "runs/small/tokenizer.json")).unwrap();
    let forged = |vocab_size| forged_tokens(&first, vocab_size, tokenizer.end_of_text());
    for wrong in [other, first[..first.len() - 1].to_vec(), Vec::new(), forged(1 << 16), forged(8)] {
        block_on(elsewhere.write(&files[1].name, &wrong)).unwrap();
        let error = run(&elsewhere, &config, true, None).0.unwrap_err().to_string();
        assert!(error.starts_with(&files[1].name) && error.ends_with("or unpack the run again"), "{error}");
    }
    // Ids that the model does not have, where the file says it knows better.
    block_on(elsewhere.write(&files[1].name, &forged(tokenizer.vocab_size()))).unwrap();
    run(&elsewhere, &config, true, Some(4)).0.unwrap();
    block_on(elsewhere.write(&files[1].name, &first)).unwrap();
    run(&elsewhere, &config, true, None).0.unwrap();
}

/// A whole file of tokens with the key of this one: ids that no tokenizer of the tests has.
fn forged_tokens(file: &[u8], vocab_size: usize, end_of_text: Option<u32>) -> Vec<u8> {
    let store = Store::memory();
    block_on(async {
        let mut writer = TokenWriter::create(&store, "forged", file[16..48].try_into().unwrap(), vocab_size, end_of_text).await.unwrap();
        writer.push(&[60_000; 2000]).unwrap();
        writer.finish(Counts::default()).await.unwrap();
    });
    block_on(store.read("forged")).unwrap().to_vec()
}

#[test]
fn a_run_that_comes_with_the_tokenizer_of_a_larger_model_is_refused() {
    cpu();
    let (store, config) = small_run(6);
    run(&store, &config, false, Some(3)).0.unwrap();
    let larger = block_on(vocabulary::train(&store, &config.sources, 2000, &Control::connect().0)).unwrap().unwrap();
    block_on(store.write("runs/small/tokenizer.json", larger.json())).unwrap();
    let error = run(&store, &config, true, None).0.unwrap_err().to_string();
    assert!(error.contains("use the tokenizer that belongs to the model"), "{error}");
}

#[test]
fn a_model_is_packed_and_nothing_else() {
    let store = Store::memory();
    let files = [("m/config.json", "{}"), ("m/model.safetensors", "weights"), ("m/.lock", ""), ("m/.saving/x", ""), ("m/deep/a.txt", "a")];
    files.iter().for_each(|(name, text)| block_on(store.write(name, text.as_bytes())).unwrap());
    let (elsewhere, result) = unpacked(&packed(&store, "m"), "copy");
    result.unwrap();
    let mut found: Vec<String> = block_on(runs::files(&elsewhere, "copy")).unwrap().into_iter().map(|entry| entry.name).collect();
    found.sort();
    assert_eq!(found, ["copy/config.json", "copy/deep/a.txt", "copy/model.safetensors"]);
    assert_eq!(block_on(elsewhere.read_text("copy/model.safetensors")).unwrap(), "weights");

    let (control, signals, _) = Control::connect();
    let refused = |folder: &str, out: &str| block_on(pack::run(folder, out, &store, &control)).unwrap_err().to_string();
    assert!(refused("m/deep", "y.zip").contains("neither a run nor a model"));
    assert!(refused("m", "m/deep").contains("is a folder"));
    let before = block_on(store.read("x.zip")).unwrap().to_vec();
    block_on(store.write("m/old.zip", b"packed before")).unwrap();
    block_on(pack::run("m", "x.zip", &store, &control)).unwrap();
    assert_eq!(block_on(store.read("x.zip")).unwrap().to_vec(), before, "packed again, without what was packed before");
    signals.stop();
    block_on(pack::run("m", "y.zip", &store, &control)).unwrap();
    assert!(!block_on(store.exists("y.zip")), "stopped, it leaves nothing");
    block_on(unpack::run("x.zip", "z", &store, &control)).unwrap();
    assert!(!block_on(store.exists("z")) && !block_on(store.exists(".z.unpacking")));
    assert!(block_on(unpack::run("x.zip", "m", &store, &control)).unwrap_err().to_string().contains("exists already"));
}

#[test]
fn an_adapter_alone_is_packed() {
    let store = Store::memory();
    block_on(store.write("a/adapter_config.json", b"{}")).unwrap();
    let (elsewhere, result) = unpacked(&packed(&store, "a"), "copy");
    result.unwrap();
    assert!(block_on(elsewhere.exists("copy/adapter_config.json")));
}

/// A file of a `.zip` made by hand.
#[derive(Clone)]
pub struct Entry {
    pub name: &'static [u8],
    pub data: Vec<u8>,
    /// Size that the headers tell.
    pub size: u32,
    /// Upper half of the external attributes: what Unix calls the mode.
    pub mode: u32,
    /// 0: stored; 8: deflated.
    pub method: u16,
    /// Flags; 1: encrypted.
    pub flags: u16,
}

pub fn entry(name: &'static [u8], data: &[u8]) -> Entry {
    Entry { name, data: data.to_vec(), size: data.len() as u32, mode: 0o100_644, method: 0, flags: 0 }
}

fn crc32(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 });
    }
    !crc
}

pub fn zip_of(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let add = |to: &mut Vec<u8>, parts: &[(u32, usize)]| parts.iter().for_each(|(n, width)| to.extend(&n.to_le_bytes()[..*width]));
    for entry in entries {
        let shared = [
            (20, 2),
            (u32::from(entry.flags), 2),
            (u32::from(entry.method), 2),
            (0, 2),
            (33, 2),
            (crc32(&entry.data), 4),
            (entry.data.len() as u32, 4),
            (entry.size, 4),
            (entry.name.len() as u32, 2),
            (0, 2),
        ];
        let offset = file.len() as u32;
        add(&mut file, &[(0x0403_4b50, 4)]);
        add(&mut file, &shared);
        file.extend(entry.name);
        file.extend(&entry.data);
        add(&mut directory, &[(0x0201_4b50, 4), (0x031e, 2)]);
        add(&mut directory, &shared);
        add(&mut directory, &[(0, 2), (0, 2), (0, 2), (entry.mode << 16, 4), (offset, 4)]);
        directory.extend(entry.name);
    }
    let (offset, count) = (file.len() as u32, entries.len() as u32);
    file.extend(&directory);
    add(&mut file, &[(0x0605_4b50, 4), (0, 2), (0, 2), (count, 2), (count, 2), (directory.len() as u32, 4), (offset, 4), (0, 2)]);
    file
}

/// Unpacking says these words and leaves nothing behind.
#[track_caller]
fn refused(entries: &[Entry], words: &str) {
    let (store, result) = unpacked(&zip_of(entries), "safe/out");
    let error = result.expect_err("must be refused").to_string();
    assert!(error.contains(words) && error.starts_with("x.zip: ") && !error.contains('\n'), "{error}");
    assert_eq!(block_on(runs::files(&store, "safe")).unwrap(), []);
}

#[test]
fn what_others_zip_is_read() {
    let odd = entry(b"around/console.com10.nul", b"fine");
    let model =
        [entry(b"around/config.json", b"{}"), entry(b"around/", b""), entry(b"around/a/b.txt", b"b"), odd, entry(b"__MACOSX/._x", b"?")];
    let (store, result) = unpacked(&zip_of(&model), "out");
    result.unwrap();
    assert_eq!(block_on(store.read_text("out/config.json")).unwrap(), "{}");
    assert_eq!(block_on(store.read_text("out/a/b.txt")).unwrap(), "b");
    assert_eq!(block_on(store.read_text("out/console.com10.nul")).unwrap(), "fine");
    assert!(!block_on(store.exists("out/__MACOSX")));
}

#[test]
fn hostile_files_are_refused_and_leave_nothing() {
    let model = entry(b"config.json", b"{}");
    let with = |other: Entry| [model.clone(), other];
    for name in [
        &b"../evil"[..],
        b"a/../../evil",
        b"/etc/evil",
        b"C:\\evil",
        b"C:evil",
        b"a\\..\\evil",
        b"a//b",
        b"./a",
        b"a\0b",
        b"con\nfig",
        b"",
        b"..",
        b"...",
        b"a./b",
        b"a ",
        b"a?b",
        b"CON",
        b"aux.json",
        b"a/Nul .tar.gz",
        b"com1",
    ] {
        refused(&with(entry(name, b"x")), "no name that a packed file may have");
    }
    refused(&with(Entry { flags: 1 << 11, ..entry("lpt³.txt".as_bytes(), b"x") }), "no name that a packed file may have");
    let link = Entry { mode: 0o120_777, ..entry(b"link", b"/etc/passwd") };
    refused(&with(link), "is a link");
    refused(&with(entry(b"config.json", b"again")), "same name");
    refused(&with(entry(b"Config.JSON", b"again")), "same name");
    refused(&with(entry(b"config.json/x", b"again")), "is a file, too");
    refused(&[entry(b"readme.txt", b"hello")], "neither a run nor a model");
    refused(&with(Entry { size: 3, ..entry(b"long", b"longer") }), "x.zip: long: ");
    refused(&with(Entry { size: 9, ..entry(b"short", b"shorter") }), "x.zip: short: ");
    refused(&with(Entry { size: u32::MAX - 1, ..entry(b"bomb", b"x") }), "are the most for a file of its size");
    refused(&with(Entry { flags: 1, ..entry(b"secret", b"0123456789abcdef") }), "is encrypted");
    refused(&with(Entry { method: 77, ..entry(b"odd", b"x") }), "x.zip: odd");
    // Deflated: one stored block of three bytes, and one that claims more than there is.
    let block = |length: u16, data: &[u8]| [&[1][..], &length.to_le_bytes(), &(!length).to_le_bytes(), data].concat();
    let mut cut = Entry { method: 8, size: 300, ..entry(b"cut", b"") };
    cut.data = block(300, b"abc");
    refused(&with(cut), "x.zip: cut: ");
    let many: Vec<Entry> = (0..3).map(|_| entry(b"config.json", b"{}")).collect();
    refused(&many, "same name");
    let mut overlapping = zip_of(&[model.clone(), entry(b"b", b"second")]);
    let second = overlapping.windows(4).rposition(|bytes| bytes == 0x0201_4b50u32.to_le_bytes()).unwrap() + 42;
    overlapping[second..second + 4].fill(0); // both entries read the first file's bytes
    let (store, result) = unpacked(&overlapping, "safe/out");
    result.unwrap_err();
    assert_eq!(block_on(runs::files(&store, "safe")).unwrap(), []);
}

#[test]
fn damage_is_one_line_and_leaves_nothing() {
    let store = Store::memory();
    block_on(store.write("m/config.json", b"{\"a\": \"some text that is compressed, text that is compressed\"}")).unwrap();
    block_on(store.write("m/model.safetensors", b"numbers as they are")).unwrap();
    let whole = packed(&store, "m");
    let intact = |store: &Store| {
        block_on(store.read_text("out/config.json")).is_ok_and(|text| text.ends_with("compressed\"}"))
            && block_on(store.read_text("out/model.safetensors")).is_ok_and(|text| text == "numbers as they are")
    };
    let check = |bytes: &[u8], place: &str| {
        let (store, result) = unpacked(bytes, "out");
        match result {
            Ok(()) => assert!(intact(&store) || block_on(store.exists("out/config.json")), "{place}: what is unpacked is whole"),
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{place}: {error}");
                assert_eq!(block_on(runs::files(&store, "out")).unwrap(), [], "{place}");
                assert!(!block_on(store.exists(".out.unpacking")), "{place}");
            }
        }
    };
    for length in 0..whole.len() {
        let (_, result) = unpacked(&whole[..length], "out");
        assert!(result.is_err(), "cut to {length}");
        check(&whole[..length], &format!("cut to {length}"));
    }
    let mut undetected = 0;
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        check(&flipped, &format!("byte {at}"));
        let (store, result) = unpacked(&flipped, "out");
        undetected += usize::from(result.is_ok() && !intact(&store));
    }
    // A flipped letter of a name is another name; contents have their checksum.
    assert!(undetected <= 2 * "model.safetensors".len(), "{undetected}");
}
