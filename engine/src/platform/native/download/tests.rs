//! Against a hub of our own on this machine: no test asks anybody else.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_lite::future::block_on;

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A folder of one test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("smolforge-download-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A request as the server saw it.
#[derive(Debug, Clone, Default)]
struct Asked {
    method: String,
    path: String,
    range: Option<u64>,
    token: Option<String>,
}

/// What a server answers instead of what a hub would; `None` for most questions.
type Fault = Box<dyn Fn(&Asked, &mut TcpStream) -> Option<String> + Send + Sync>;

/// A hub with one model, `owner/name`; its large files lie on another server.
struct Hub {
    files: BTreeMap<String, Vec<u8>>,
    fault: Fault,
    asked: Mutex<Vec<Asked>>,
    elsewhere: Mutex<Vec<Asked>>,
}

impl Hub {
    /// Serves until the process ends; the address of the hub.
    fn serve(files: &[(&str, Vec<u8>)], fault: Fault) -> (Arc<Self>, String) {
        let files = files.iter().map(|(name, bytes)| ((*name).to_string(), bytes.clone())).collect();
        let hub = Arc::new(Self { files, fault, asked: Mutex::default(), elsewhere: Mutex::default() });
        let storage = hub.clone().listen(|hub, asked, stream| {
            hub.elsewhere.lock().unwrap().push(asked.clone());
            if let Some(answer) = (hub.fault)(asked, stream) {
                return stream.write_all(answer.as_bytes());
            }
            let bytes = &hub.files[asked.path.trim_start_matches("/stored/")];
            stream.write_all(&content(bytes, asked, ""))
        });
        let address = hub.clone().listen(move |hub, asked, stream| {
            hub.asked.lock().unwrap().push(asked.clone());
            let answer = (hub.fault)(asked, stream).map(String::into_bytes);
            stream.write_all(&answer.unwrap_or_else(|| hub.answer(asked, &storage)))
        });
        (hub, address)
    }

    fn listen(self: Arc<Self>, answer: impl Fn(&Self, &Asked, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (hub, answer) = (self.clone(), answer.clone());
                std::thread::spawn(move || {
                    let asked = Asked::read(&mut stream);
                    let _ = answer(&hub, &asked, &mut stream);
                });
            }
        });
        address
    }

    fn answer(&self, asked: &Asked, storage: &str) -> Vec<u8> {
        if asked.path == "/api/models/owner/name/revision/main" || asked.path == format!("/api/models/owner/name/revision/{COMMIT}") {
            let siblings: Vec<Value> = self.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            return ok(&serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()).into_bytes();
        }
        let name = asked.path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/")).unwrap_or_default();
        let Some(bytes) = self.files.get(name) else { return refusal(404, "EntryNotFound").into_bytes() };
        let etag = hex(Sha256::hash(bytes).as_ref());
        if name.ends_with(".safetensors") {
            let told = format!("x-linked-etag: \"{etag}\"\r\nx-linked-size: {}\r\nx-repo-commit: {COMMIT}", bytes.len());
            return format!(
                "HTTP/1.1 302 Found\r\nlocation: {storage}/stored/{name}\r\n{told}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            .into_bytes();
        }
        content(bytes, asked, &format!("etag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\n", &etag[..40]))
    }

    fn count(&self, method: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.method == method && asked.path.contains("/resolve/")).count()
    }
}

impl Asked {
    fn read(stream: &mut TcpStream) -> Self {
        let mut lines = BufReader::new(stream).lines().map_while(|line| line.ok().filter(|line| !line.is_empty()));
        let first = lines.next().unwrap_or_default();
        let mut words = first.split(' ').map(String::from);
        let mut asked = Self { method: words.next().unwrap(), path: words.next().unwrap_or_default(), ..Self::default() };
        for line in lines {
            match line.to_lowercase().split_once(": ") {
                Some(("range", range)) => asked.range = range.trim_start_matches("bytes=").trim_end_matches('-').parse().ok(),
                Some(("authorization", _)) => asked.token = line.split(' ').next_back().map(String::from),
                _ => {}
            }
        }
        asked
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn refusal(status: u16, code: &str) -> String {
    format!("HTTP/1.1 {status} No\r\nx-error-code: {code}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

fn content(bytes: &[u8], asked: &Asked, headers: &str) -> Vec<u8> {
    let (total, from) = (bytes.len(), asked.range.map_or(0, |from| from as usize));
    let status = match asked.range {
        Some(_) => format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{total}", total.saturating_sub(1)),
        None => "200 OK".into(),
    };
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", total - from);
    let body = if asked.method == "HEAD" { &[] } else { &bytes[from..] };
    [head.as_bytes(), body].concat()
}

fn no_fault() -> Fault {
    Box::new(|_, _| None)
}

/// 1 MB that looks like no other.
fn weights() -> Vec<u8> {
    (0..1_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn model() -> Vec<(&'static str, Vec<u8>)> {
    let around = ["config.json", "tokenizer.json", "generation_config.json", "README.md", "pytorch_model.bin", "../evil.json"];
    let mut files: Vec<_> = around.into_iter().map(|name| (name, format!("{{\"name\": \"{name}\"}}").into_bytes())).collect();
    files.push(("model.safetensors", weights()));
    files
}

fn settings(endpoint: &str, cache: &Path) -> Settings {
    let wait = Duration::from_millis(1);
    Settings { cache: cache.into(), endpoint: endpoint.into(), token: Some("secret".into()), offline: false, certificates: None, wait }
}

/// The result, and the notices on the way to it.
fn run(settings: Settings, revision: &str) -> (Result<PathBuf>, Vec<String>) {
    let download = start(settings, "owner/name", revision).unwrap();
    let mut notices = Vec::new();
    loop {
        match block_on(download.updates.recv()).expect("a result comes") {
            Update::Notice { text, .. } => notices.push(text),
            Update::Progress { done, total } => assert!(done <= total, "{done} of {total}"),
            Update::Done(result) => return (result.map(PathBuf::from), notices),
        }
    }
}

/// The error of a download from a hub with a fault.
#[track_caller]
fn check_error(fault: Fault, parts: &[&str]) {
    let cache = Folder::new();
    let (_hub, address) = Hub::serve(&model(), fault);
    let error = run(settings(&address, cache.path()), "main").0.unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{part:?} is missing in {error:?}");
    }
    assert!(!error.contains('\n') && !error.contains("secret"), "{error}");
    assert!(!cache.path().join("models--owner--name/refs/main").exists());
}

fn in_storage(asked: &Asked) -> bool {
    asked.path.starts_with("/stored/")
}

fn named(cache: &Path, ending: &str) -> PathBuf {
    cache.join("models--owner--name/blobs").join(format!("{}{ending}", hex(Sha256::hash(&weights()).as_ref())))
}

#[test]
fn a_model_is_laid_out_as_hugging_face_does_and_loaded_once() {
    let cache = Folder::new();
    let (hub, address) = Hub::serve(&model(), no_fault());
    let (folder, notices) = run(settings(&address, cache.path()), "main");
    let folder = folder.unwrap();
    assert_eq!(folder, cache.path().join("models--owner--name/snapshots").join(COMMIT));
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read(named(cache.path(), "")).unwrap(), weights());
    assert_eq!(fs::read_to_string(cache.path().join("models--owner--name/refs/main")).unwrap(), COMMIT);
    assert!(notices[0].starts_with("owner/name at 01234567: downloading 4 files into "), "{notices:?}");
    #[cfg(unix)]
    assert!(fs::read_link(folder.join("config.json")).unwrap().starts_with("../../blobs"));
    let before = (hub.count("HEAD"), hub.count("GET"));
    assert_eq!(before, (4, 4));
    for revision in ["main", COMMIT] {
        assert_eq!(run(settings(&address, cache.path()), revision).0.unwrap(), folder);
    }
    assert_eq!((hub.count("HEAD"), hub.count("GET")), before);
    assert!(!cache.path().join("models--owner--name/refs").join(COMMIT).exists());
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let cache = Folder::new();
    let (hub, address) = Hub::serve(&model(), no_fault());
    run(settings(&address, cache.path()), "main").0.unwrap();
    assert!(hub.asked.lock().unwrap().iter().all(|asked| asked.token.as_deref() == Some("secret")));
    let elsewhere = hub.elsewhere.lock().unwrap();
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|asked| asked.token.is_none()), "{elsewhere:?}");
}

#[test]
fn a_cut_connection_goes_on_where_it_was_cut() {
    let cache = Folder::new();
    let (first, half) = (AtomicBool::new(true), weights().len() / 2);
    let (hub, address) = Hub::serve(
        &model(),
        Box::new(move |asked, stream| {
            if !in_storage(asked) || !first.swap(false, Ordering::Relaxed) {
                return None;
            }
            let whole = content(&weights(), asked, "");
            stream.write_all(&whole[..whole.len() - weights().len() + half]).unwrap();
            Some(String::new())
        }),
    );
    let folder = run(settings(&address, cache.path()), "main").0.unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let ranges: Vec<_> = hub.elsewhere.lock().unwrap().iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, [None, Some(half as u64)]);
}

#[test]
fn stopping_in_the_middle_keeps_what_has_arrived() {
    let cache = Folder::new();
    let (release, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let (_hub, address) = Hub::serve(
        &model(),
        Box::new(move |asked, stream| {
            if !in_storage(asked) {
                return None;
            }
            let whole = content(&weights(), asked, "");
            stream.write_all(&whole[..600_000]).unwrap();
            let _ = wait.lock().unwrap().recv();
            Some(String::new())
        }),
    );
    let Download { updates, going } = start(settings(&address, cache.path()), "owner/name", "main").unwrap();
    let partial = named(cache.path(), ".incomplete");
    while fs::metadata(&partial).map_or(0, |meta| meta.len()) == 0 {
        std::thread::yield_now();
    }
    drop((going, release));
    while let Ok(update) = block_on(updates.recv()) {
        assert!(!matches!(update, Update::Done(_)), "{update:?}");
    }
    let arrived = fs::read(&partial).unwrap();
    assert!(!arrived.is_empty() && weights().starts_with(&arrived));

    let (hub, address) = Hub::serve(&model(), no_fault());
    let folder = run(settings(&address, cache.path()), "main").0.unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(hub.elsewhere.lock().unwrap()[0].range, Some(arrived.len() as u64));
    assert!(!partial.exists());
}

#[test]
fn a_server_that_cannot_begin_in_the_middle_begins_anew() {
    let cache = Folder::new();
    let partial = named(cache.path(), ".incomplete");
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &weights()[..1000]).unwrap();
    let fault: Fault = Box::new(|asked, stream| {
        let whole = content(&weights(), &Asked { range: None, ..asked.clone() }, "");
        in_storage(asked).then(|| drop(stream.write_all(&whole))).map(|()| String::new())
    });
    let (_hub, address) = Hub::serve(&model(), fault);
    let folder = run(settings(&address, cache.path()), "main").0.unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_damaged_part_is_noticed_and_removed() {
    let cache = Folder::new();
    let partial = named(cache.path(), ".incomplete");
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, [0xff; 1000]).unwrap();
    let (_hub, address) = Hub::serve(&model(), no_fault());
    let error = run(settings(&address, cache.path()), "main").0.unwrap_err().to_string();
    assert!(error.contains("SHA-256 is ") && error.ends_with("removed, try again"), "{error}");
    assert!(!partial.exists() && !named(cache.path(), "").exists());
    run(settings(&address, cache.path()), "main").0.unwrap();
}

#[test]
fn refusals_say_what_to_do() {
    for status in [401, 403] {
        let gated = move |asked: &Asked, _: &mut TcpStream| asked.path.contains("/resolve/").then(|| refusal(status, "GatedRepo"));
        check_error(Box::new(gated), &["is gated", "no access: accept its licence at http://127", "/owner/name with that account"]);
    }
    let all = |status: u16, code: &'static str| -> Fault { Box::new(move |_, _| Some(refusal(status, code))) };
    check_error(all(401, ""), &["HF_TOKEN", "may not read it"]);
    check_error(all(403, ""), &["HF_TOKEN", "may not read it"]);
    check_error(all(404, "RepoNotFound"), &["no such folder here, and no model of this name at http://127", "check the spelling"]);
    check_error(all(404, "RevisionNotFound"), &["has no revision main"]);
    check_error(all(429, ""), &["too many requests"]);
    check_error(all(503, ""), &["answers with error 503; try again later"]);
    check_error(Box::new(|_, _| Some(ok("<html>"))), &["is HF_ENDPOINT right?"]);

    let cache = Folder::new();
    for (code, part) in [("GatedRepo", "then set HF_TOKEN"), ("", "if it is private or gated, accept its licence there and set HF_TOKEN")] {
        let (_hub, address) = Hub::serve(&model(), all(401, code));
        let error = run(Settings { token: None, ..settings(&address, cache.path()) }, "main").0.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn only_files_that_can_be_done_without_may_be_missing() {
    let missing =
        |name: &'static str| -> Fault { Box::new(move |asked, _| asked.path.ends_with(name).then(|| refusal(404, "EntryNotFound"))) };
    let cache = Folder::new();
    let (_hub, address) = Hub::serve(&model(), missing("generation_config.json"));
    let folder = run(settings(&address, cache.path()), "main").0.unwrap();
    assert!(!folder.join("generation_config.json").exists() && folder.join("model.safetensors").exists());
    check_error(missing("/config.json"), &["config.json: "]);

    let (_hub, address) = Hub::serve(&[("config.json", b"{}".to_vec()), ("pytorch_model.bin", vec![1])], no_fault());
    let cache = Folder::new();
    let error = run(settings(&address, cache.path()), "main").0.unwrap_err().to_string();
    assert!(error.starts_with("owner/name: has no model.safetensors (only pickles, which can run code"), "{error}");
}

#[test]
fn without_a_hub_the_cache_is_used_or_one_line_says_why_not() {
    let cache = Folder::new();
    let closed = "http://127.0.0.1:1".to_string(); // nobody listens there
    let offline = |offline| Settings { offline, ..settings(&closed, cache.path()) };
    let error = run(offline(true), "main").0.unwrap_err().to_string();
    assert!(error.starts_with("owner/name: HF_HUB_OFFLINE is set, and the cache "), "{error}");
    let error = run(offline(false), "main").0.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("owner/name: there is no such folder here, and {closed} cannot be reached ("))
            && error.contains("HF_ENDPOINT"),
        "{error}"
    );

    let (hub, address) = Hub::serve(&model(), no_fault());
    let folder = run(settings(&address, cache.path()), "main").0.unwrap();
    let asked = hub.asked.lock().unwrap().len();
    for revision in ["main", COMMIT] {
        let (offline, notices) = run(Settings { offline: true, ..settings(&address, cache.path()) }, revision);
        assert_eq!((offline.unwrap(), notices.len()), (folder.clone(), 0));
    }
    assert_eq!(hub.asked.lock().unwrap().len(), asked, "offline asks nobody");
    let (unreachable, notices) = run(offline(false), "main");
    assert_eq!(unreachable.unwrap(), folder);
    assert!(notices[0].ends_with("going on with the copy in the cache"), "{notices:?}");
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    run(offline(true), "main").0.unwrap_err();
}

#[test]
fn sizes_that_differ_are_refused() {
    let short = |asked: &Asked, _: &mut TcpStream| in_storage(asked).then(|| ok("not the weights"));
    check_error(Box::new(short), &["model.safetensors: 15 bytes are sent, the hub promised 1000003"]);
    let none = |asked: &Asked, _: &mut TcpStream| {
        (asked.method == "HEAD").then(|| "HTTP/1.1 200 OK\r\netag: \"abc\"\r\nconnection: close\r\n\r\n".to_string())
    };
    check_error(Box::new(none), &["does not tell its size"]);
    let huge = |asked: &Asked, _: &mut TcpStream| {
        let head = "HTTP/1.1 200 OK\r\netag: \"abc\"\r\ncontent-length: 99999999999\r\nconnection: close\r\n\r\n";
        (asked.method == "HEAD").then(|| head.to_string())
    };
    check_error(Box::new(huge), &["config.json: 99999999999 bytes are too many for a file of this kind"]);
    let cut = |asked: &Asked, _: &mut TcpStream| in_storage(asked).then(String::new);
    check_error(Box::new(cut), &["model.safetensors: ", "0 of 1000003 bytes are kept, and the same command goes on from there"]);
}

#[test]
fn names_from_a_hostile_hub_stay_in_their_folders() {
    for etag in ["../../evil", "..", ".", "", "a/b", "C:evil", "a.incomplete"] {
        let head = format!("HTTP/1.1 200 OK\r\netag: \"{etag}\"\r\ncontent-length: 2\r\nconnection: close\r\n\r\n");
        check_error(Box::new(move |asked, _| (asked.method == "HEAD").then(|| head.clone())), &["as its hash; is HF_ENDPOINT a hub"]);
    }
    for sha in ["../../../../evil", "main", "0123"] {
        let list = ok(&format!("{{\"sha\": \"{sha}\", \"siblings\": []}}"));
        check_error(Box::new(move |_, _| Some(list.clone())), &["is HF_ENDPOINT right?"]);
    }
    for shard in ["../evil.safetensors", "/etc/evil.safetensors", ".safetensors", "evil.bin", "a\\\\b.safetensors"] {
        let index = format!("{{\"weight_map\": {{\"a\": \"{shard}\"}}}}").into_bytes();
        let (_hub, address) = Hub::serve(&[("config.json", b"{}".to_vec()), (INDEX, index)], no_fault());
        let cache = Folder::new();
        let error = run(settings(&address, cache.path()), "main").0.unwrap_err().to_string();
        assert!(error.contains("is no name of a .safetensors file of this folder"), "{error}");
    }
}

#[test]
fn shards_and_adapters_come_with_what_belongs_to_them() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#.to_vec();
    let sharded =
        [("config.json", b"{}".to_vec()), (INDEX, index), ("model-1.safetensors", vec![1; 65]), ("model-2.safetensors", Vec::new())];
    let adapter = [("adapter_config.json", b"{}".to_vec()), (ADAPTER, vec![2; 64]), ("tokenizer.json", vec![3]), ("README.md", vec![4])];
    for (files, expect) in [(&sharded, 4), (&adapter, 3)] {
        let cache = Folder::new();
        let (_hub, address) = Hub::serve(files, no_fault());
        let folder = run(settings(&address, cache.path()), "main").0.unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), expect);
        assert_eq!(run(Settings { offline: true, ..settings(&address, cache.path()) }, "main").0.unwrap(), folder);
        for (name, bytes) in files.iter().filter(|(name, _)| *name != "README.md") {
            assert_eq!(&fs::read(folder.join(name)).unwrap(), bytes, "{name}");
        }
    }
}

#[test]
fn two_programs_do_not_load_the_same_file() {
    let cache = Folder::new();
    let (_hub, address) = Hub::serve(&model(), no_fault());
    let lock = cache.path().join(format!(".locks/models--owner--name/{}.lock", hex(Sha256::hash(&weights()).as_ref())));
    make_parent(&lock, "lock").unwrap();
    let held = File::create(&lock).unwrap();
    held.try_lock().unwrap();
    let download = start(settings(&address, cache.path()), "owner/name", "main").unwrap();
    let waits = || match block_on(download.updates.recv()).unwrap() {
        Update::Notice { text, .. } => text == "model.safetensors: another program is downloading it; waiting for that",
        Update::Done(result) => panic!("did not wait: {result:?}"),
        Update::Progress { .. } => false,
    };
    while !waits() {}
    drop(held);
    while !matches!(block_on(download.updates.recv()).unwrap(), Update::Done(Ok(_))) {}
}

#[test]
fn the_environment_is_read_as_hugging_face_does() {
    let with = |pairs: &[(&str, &str)]| {
        let pairs: BTreeMap<String, String> = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Settings::from_environment(move |name| pairs.get(name).cloned())
    };
    let user = std::env::home_dir().unwrap();
    assert_eq!(with(&[]).cache, user.join(".cache/huggingface/hub"));
    assert_eq!((with(&[]).endpoint.as_str(), with(&[]).offline), ("https://huggingface.co", false));
    assert_eq!(with(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    assert_eq!(with(&[("HF_HOME", "~/h"), ("XDG_CACHE_HOME", "/x")]).cache, user.join("h/hub"));
    assert_eq!(with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]).cache, Path::new("/c"));
    assert!(with(&[("HF_HUB_OFFLINE", "true")]).offline && !with(&[("HF_HUB_OFFLINE", "0")]).offline);
    let home = Folder::new();
    fs::write(home.path().join("token"), "stored\n").unwrap();
    let folder = home.path().to_str().unwrap();
    assert_eq!(with(&[("HF_HOME", folder)]).token.as_deref(), Some("stored"));
    assert_eq!(with(&[("HF_HOME", folder), ("HF_TOKEN", "given")]).token.as_deref(), Some("given"));
    assert_eq!(with(&[("HF_HOME", folder), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
    let wrong = Settings { endpoint: "huggingface.co".into(), ..with(&[("HF_HOME", folder)]) };
    let error = run(wrong, "main").0.unwrap_err().to_string();
    assert!(error.starts_with("HF_ENDPOINT=huggingface.co: not an address"), "{error}");
}
