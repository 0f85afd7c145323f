//! `smolforge web`: the browser build, served to this machine.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use tiny_http::{Header, Method, Request, Response, Server};

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
        let server = Server::http(("127.0.0.1", self.port))
            .map_err(|error| anyhow::anyhow!("port {}: {error}; choose another --port", self.port))?;
        let port = server.server_addr().to_ip().map_or(self.port, |address| address.port());
        let (screen, url) = (Screen::new(), format!("http://127.0.0.1:{port}/"));
        screen.println(if json { serde_json::json!({ "url": url }).to_string() } else { url })?;
        screen.line("Ctrl-C ends it");
        for request in server.incoming_requests() {
            let _ = self.answer(request); // a browser that has gone away is no error
        }
        Ok(())
    }

    fn answer(&self, request: Request) -> anyhow::Result<()> {
        if !matches!(request.method(), Method::Get | Method::Head) {
            return Ok(request.respond(Response::empty(405))?);
        }
        let Some(path) = inside(&self.dir, request.url()).filter(|path| path.is_file()) else {
            return Ok(request.respond(Response::from_string("not found\n").with_status_code(404))?);
        };
        let takes_brotli = request.headers().iter().any(|header| {
            header.field.equiv("Accept-Encoding") && header.value.as_str().split(',').any(|one| one.trim().split(';').next() == Some("br"))
        });
        let packed = PathBuf::from(format!("{}.br", path.display()));
        let packed = Some(packed).filter(|packed| takes_brotli && packed.is_file());
        let file = File::open(packed.as_deref().unwrap_or(&path)).context("reading the page")?;
        let mut response = Response::from_file(file).with_header(header("Content-Type", kind(&path)));
        // The browser asks each time whether what it has is still right; the service worker keeps the rest.
        response.add_header(header("Cache-Control", "no-cache"));
        response.add_header(header("X-Content-Type-Options", "nosniff"));
        if packed.is_some() {
            response.add_header(header("Content-Encoding", "br"));
        }
        Ok(request.respond(response)?)
    }
}

fn header(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).expect("plain letters")
}

/// The file that an address means; none outside the folder.
fn inside(folder: &Path, url: &str) -> Option<PathBuf> {
    let path = url.split(['?', '#']).next()?.trim_start_matches('/');
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
        assert_eq!(inside(folder, "/worker.js?x=1"), Some("dist/worker.js".into()));
        for outside in ["/../Cargo.toml", "//etc/passwd/../..", "/a/../../b"] {
            assert_eq!(
                inside(folder, outside).filter(|path| !path.starts_with(folder) || path.to_string_lossy().contains("..")),
                None,
                "{outside}"
            );
        }
    }
}
