//! `smolforge web`: the browser build, served to this machine.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use oxhttp::Server;
use oxhttp::model::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY, X_CONTENT_TYPE_OPTIONS};
use oxhttp::model::{Body, Method, Request, Response, StatusCode};

use super::progress::Screen;

/// Serve the browser page on this machine
#[derive(Debug, clap::Args)]
#[command(after_help = "web/build.sh makes the page. Any host of static files serves it as well; nothing needs special headers.")]
pub struct Args {
    /// Port on 127.0.0.1; 0 takes one that is free
    #[arg(long, default_value_t = 8080)]
    port: u16,

    /// Folder of the page
    #[arg(long, default_value = "web/dist", value_name = "FOLDER")]
    dir: PathBuf,
}

impl Args {
    /// Serves until the process ends.
    pub fn run(&self, json: bool) -> anyhow::Result<()> {
        if !self.dir.join("index.html").is_file() {
            bail!("{} holds no page; web/build.sh makes it", self.dir.display());
        }
        let folder = self.dir.clone();
        let server = Server::new(move |request| answer(&folder, request));
        let wrong = |error: std::io::Error| anyhow::anyhow!("port {}: {error}; choose another --port", self.port);
        // The server does not tell which port it took.
        let port = TcpListener::bind(("127.0.0.1", self.port)).and_then(|free| free.local_addr()).map_err(wrong)?.port();
        let server = server.bind((Ipv4Addr::LOCALHOST, port)).spawn().map_err(wrong)?;
        let (screen, url) = (Screen::new(), format!("http://127.0.0.1:{port}/"));
        screen.println(if json { serde_json::json!({ "url": url }).to_string() } else { url })?;
        screen.line("Ctrl-C ends it");
        Ok(server.join()?)
    }
}

fn answer(folder: &Path, request: &Request<Body>) -> Response<Body> {
    let answer = match (request.method(), inside(folder, request.uri().path()).filter(|path| path.is_file())) {
        (&Method::GET, Some(path)) => file(&path, request),
        (&Method::GET, None) => refusal(StatusCode::NOT_FOUND),
        _ => refusal(StatusCode::METHOD_NOT_ALLOWED),
    };
    answer.unwrap_or_else(|error| {
        eprintln!("{error}");
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        answer
    })
}

fn refusal(status: StatusCode) -> anyhow::Result<Response<Body>> {
    let words = format!("{}\n", status.canonical_reason().unwrap_or_default());
    Ok(Response::builder().status(status).header(CONTENT_TYPE, "text/plain; charset=utf-8").body(Body::from(words))?)
}

/// A file of the page, packed where the browser takes that.
fn file(path: &Path, request: &Request<Body>) -> anyhow::Result<Response<Body>> {
    let accepted = request.headers().get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let takes_brotli = accepted.split(',').any(|one| one.trim().split(';').next() == Some("br"));
    let packed = Some(PathBuf::from(format!("{}.br", path.display()))).filter(|packed| takes_brotli && packed.is_file());
    // The browser asks each time whether what it has is still right; the service worker keeps the rest.
    let answer = Response::builder()
        .header(CONTENT_TYPE, kind(path))
        .header(CACHE_CONTROL, "no-cache")
        .header(VARY, "accept-encoding")
        .header(X_CONTENT_TYPE_OPTIONS, "nosniff");
    let answer = if packed.is_some() { answer.header(CONTENT_ENCODING, "br") } else { answer };
    let path = packed.as_deref().unwrap_or(path);
    let bytes = fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    Ok(answer.body(Body::from(bytes))?)
}

/// The file that an address means; none outside the folder.
fn inside(folder: &Path, path: &str) -> Option<PathBuf> {
    let path = path.trim_start_matches('/');
    let path = Path::new(if path.is_empty() { "index.html" } else { path });
    path.components().all(|part| matches!(part, Component::Normal(_))).then(|| folder.join(path))
}

/// What browsers call a file of this name.
fn kind(path: &Path) -> &'static str {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript",
        Some("wasm") => "application/wasm",
        Some("svg") => "image/svg+xml",
        Some("webmanifest") => "application/manifest+json",
        Some("ttf" | "otf") => "font/sfnt",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_inside_the_folder() {
        let folder = Path::new("dist");
        assert_eq!(inside(folder, "/"), Some("dist/index.html".into()));
        assert_eq!(inside(folder, "/worker.js"), Some("dist/worker.js".into()));
        for outside in ["/../Cargo.toml", "//etc/passwd/../..", "/a/../../b"] {
            assert_eq!(
                inside(folder, outside).filter(|path| !path.starts_with(folder) || path.to_string_lossy().contains("..")),
                None,
                "{outside}"
            );
        }
    }
}
