//! Requests to a hub: who may see the token, where redirects lead, and what an answer means in words.

use std::sync::Arc;

use ureq::http::{Method, Request, Response, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};
use web_time::Duration;

use super::settings::Settings;
use crate::error::{Error, Result};

/// An answer whose body has not been read.
pub type Answer = Response<Body>;

/// Time for a connection, and between two pieces of an answer.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 10;

/// Speaks to one hub.
pub struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
}

/// Scheme, host and port: what a token belongs to.
type Origin = (String, String, u16);

impl Client {
    /// A client of the hub in the settings; it trusts Mozilla's certificates, or those of `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// [`Error::Config`] for an address or certificates that cannot be used.
    pub fn new(settings: &Settings) -> Result<Self> {
        let endpoint = settings.endpoint.trim_end_matches('/').to_string();
        let uri = endpoint.parse::<Uri>().ok();
        let origin = uri.as_ref().and_then(origin).ok_or_else(|| {
            Error::Config(format!("HF_ENDPOINT={endpoint}: not an address; it looks like https://huggingface.co, or leave it out"))
        })?;
        if !graviola::util::is_cpu_supported() {
            let reason = "downloads need a processor with AES, AVX2 and ADX (or NEON and SHA-2); download on another machine with \
                `hf download` and give the folder";
            return Err(Error::Config(reason.into()));
        }
        let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()));
        if let Some(file) = &settings.certificates {
            let bad = |reason: String| Error::Config(format!("SSL_CERT_FILE={}: {reason}", file.display()));
            let text = std::fs::read(file).map_err(|e| bad(e.to_string()))?;
            let roots: Vec<_> =
                parse_pem(&text).filter_map(|item| if let Ok(PemItem::Certificate(root)) = item { Some(root) } else { None }).collect();
            if roots.is_empty() {
                return Err(bad("holds no certificate in PEM form; correct the variable, or leave it out".into()));
            }
            tls = tls.root_certs(RootCerts::from(roots));
        }
        let mut config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(0) // followed here, where the token can be held back
            .user_agent(concat!("smolforge/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE));
        if matches!(origin.1.as_str(), "localhost" | "127.0.0.1" | "[::1]") {
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().into(), endpoint, origin, token: settings.token.clone() })
    }

    /// Address of a page or file of the hub.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// What is known of a file without its content. A redirect to another host is an answer: its headers tell.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn head(&self, path: &str) -> Result<Answer, String> {
        self.send(Method::HEAD, path, 0)
    }

    /// A file, from the byte `from` on where the server can.
    ///
    /// # Errors
    /// Why there was no answer.
    pub fn get(&self, path: &str, from: u64) -> Result<Answer, String> {
        self.send(Method::GET, path, from)
    }

    fn send(&self, method: Method, path: &str, from: u64) -> Result<Answer, String> {
        let mut uri: Uri = self.url(path).parse().map_err(|e| format!("{}: {e}", self.url(path)))?;
        for _ in 0..=MAX_REDIRECTS {
            let home = origin(&uri).as_ref() == Some(&self.origin);
            let mut request = Request::builder().method(&method).uri(&uri).header(header::ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| home) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(()).map_err(|_| "HF_TOKEN holds characters that no token has".to_string())?;
            let answer = self.agent.run(request).map_err(|e| reason(&e))?;
            let Some(place) = answer.headers().get(header::LOCATION).filter(|_| answer.status().is_redirection()) else {
                return Ok(answer);
            };
            let next = place.to_str().ok().and_then(|place| follow(&uri, place)).ok_or("a redirect leads nowhere")?;
            if method == Method::HEAD && origin(&next).as_ref() != Some(&self.origin) {
                return Ok(answer);
            }
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err("a redirect leads away from https".into());
            }
            uri = next;
        }
        Err(format!("more than {MAX_REDIRECTS} redirects"))
    }

    /// What an answer other than 2xx to a question about a model means, and what to do.
    pub fn refusal(&self, answer: &Answer, repo: &str, revision: &str) -> String {
        let page = self.url(repo);
        let told = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let gated = told("x-error-code") == "GatedRepo";
        match (answer.status().as_u16(), &self.token) {
            (401 | 403, None) if gated => {
                format!("is gated: accept its licence at {page}, then set HF_TOKEN to a token of your account (or run `hf auth login`)")
            }
            (401 | 403, Some(_)) if gated => {
                format!("is gated, and the account of your token has no access: accept its licence at {page} with that account")
            }
            (401, Some(_)) if told("x-error-message").contains("Invalid credentials") => {
                "your token is not valid: set HF_TOKEN to another one (or run `hf auth login`)".into()
            }
            (401, None) => format!(
                "there is no such folder here, and no public model of this name at {page}; if it is private or gated, accept its licence \
                 there and set HF_TOKEN"
            ),
            (401 | 403, _) => {
                format!("the account of your token (HF_TOKEN) may not read it; accept its licence at {page}, or use another token")
            }
            (404, _) if told("x-error-code") == "RevisionNotFound" => {
                format!("has no revision {revision}; {page} shows its branches and tags")
            }
            (404, _) => format!("there is no such folder here, and no model of this name at {page}; check the spelling"),
            (429, _) => format!("{} asks to wait (too many requests); try again in some minutes", self.endpoint),
            (status @ 500.., _) => format!("{} answers with error {status}; try again later", self.endpoint),
            (status, _) => format!("{} answers with {status}, which smolforge does not understand", self.endpoint),
        }
    }

    /// The hub did not answer.
    pub fn unreachable(&self, reason: &str) -> String {
        format!(
            "{} cannot be reached ({reason}); offline? give a folder, set HF_HUB_OFFLINE=1 to use the cache alone, or HF_ENDPOINT to a mirror",
            self.endpoint
        )
    }
}

fn origin(uri: &Uri) -> Option<Origin> {
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme))?;
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme.into(), uri.host()?.to_ascii_lowercase(), port))
}

/// Where a `Location` leads: an address, or a path on the same host.
fn follow(from: &Uri, place: &str) -> Option<Uri> {
    if place.starts_with('/') && !place.starts_with("//") {
        let mut parts = from.clone().into_parts();
        parts.path_and_query = Some(place.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    place.parse().ok().filter(|uri| origin(uri).is_some())
}

fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "no such host".into(),
        ureq::Error::Timeout(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        ureq::Error::Io(error) if error.to_string().contains("certificate") => {
            format!("{error}; behind a proxy that inspects TLS, let SSL_CERT_FILE name a file with its certificates")
        }
        ureq::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}
