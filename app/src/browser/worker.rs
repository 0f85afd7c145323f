//! The worker: an engine, whose commands and events are messages of JSON text.

use serde::{Deserialize, Serialize};
use smolforge_engine::Engine;
use smolforge_engine::protocol::{Command, Event, JobId};
use smolforge_engine::store::Store;
use wasm_bindgen::prelude::Closure;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{DedicatedWorkerGlobalScope, MessageEvent};

use crate::units::one_line;

/// What a worker says to its page.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// It listens now.
    Ready,
    /// An event of a job.
    Event(JobId, Event),
    /// It cannot go on: one sentence.
    Ended(String),
}

fn say(scope: &DedicatedWorkerGlobalScope, said: &Said) {
    if let Ok(text) = serde_json::to_string(said) {
        let _ = scope.post_message(&JsValue::from_str(&text));
    }
}

/// Serves the page for as long as it is open.
pub fn serve(scope: DedicatedWorkerGlobalScope) {
    let speaker = scope.clone();
    std::panic::set_hook(Box::new(move |info| {
        say(&speaker, &Said::Ended(one_line(&info.to_string())));
        console_error_panic_hook::hook(info);
    }));
    let engine = Engine::start(Store::folder(""));
    let listener = engine.clone();
    let on_message = Closure::<dyn FnMut(MessageEvent)>::new(move |message: MessageEvent| {
        let told = message.data().as_string().and_then(|text| serde_json::from_str::<(JobId, Command)>(&text).ok());
        if let Some((job, command)) = told {
            listener.tell(job, command);
        }
    });
    scope.set_onmessage(Some(on_message.as_ref().unchecked_ref()));
    on_message.forget(); // as long as the worker
    say(&scope, &Said::Ready);
    wasm_bindgen_futures::spawn_local(async move {
        while let Some((job, event)) = engine.next().await {
            say(&scope, &Said::Event(job, event));
        }
    });
}
