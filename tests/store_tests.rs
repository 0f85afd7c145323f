//! A folder on disk as a store: what globs find, what killed processes leave.

use std::fs;

use futures_lite::future::block_on;
use smolforge_engine::store::Store;

#[test]
fn hidden_files_are_found_only_by_their_name() {
    let folder = tempfile::tempdir().unwrap(); // its own name begins with a dot
    for name in ["a.txt", "deep/b.txt", ".hidden.txt", ".git/c.txt", "deep/.cache/d.txt"] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let root = folder.path().to_str().unwrap();
    let store = Store::folder(root);
    let found = |pattern: &str| {
        let files = block_on(store.expand(pattern)).unwrap();
        files.iter().map(|file| file.trim_start_matches(root).trim_start_matches('/').to_string()).collect::<Vec<_>>()
    };
    assert_eq!(found(root), ["a.txt", "deep/b.txt"]);
    assert_eq!(found("*.txt"), ["a.txt"]);
    assert_eq!(found("**/*.txt"), ["a.txt", "deep/b.txt"]);
    assert_eq!(found(".hidden.txt"), [".hidden.txt"]);
    assert_eq!(found(".git"), [".git/c.txt"]);
}

#[test]
fn what_a_killed_process_left_half_written_is_removed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::folder(folder.path().to_str().unwrap());
    for name in [".t.bin.4000000.tmp", ".t.bin.notes.tmp", ".other.bin.4000000.tmp"] {
        fs::write(folder.path().join(name), "left").unwrap();
    }
    let mut writing = block_on(store.create("t.bin")).unwrap();
    writing.write(b"whole").unwrap();
    drop(block_on(store.create("other.txt")).unwrap());
    let names = || {
        let mut names: Vec<String> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let own = format!(".t.bin.{}.tmp", std::process::id());
    let mut expect = vec![".other.bin.4000000.tmp".to_string(), ".t.bin.notes.tmp".into(), own];
    expect.sort();
    assert_eq!(names(), expect);
    block_on(writing.finish()).unwrap();
    assert_eq!(names(), [".other.bin.4000000.tmp", ".t.bin.notes.tmp", "t.bin"]);
}
