//! Pages and logs that name, or list, processes that live elsewhere.

use axum::body::Body;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::bulk::BulkCall;
use super::{Caller, Rpc, Update, collect, share};
use crate::daemon::Origin;
use crate::failure::{Failure, HttpResult};
use crate::forward::{self, Payload};
use crate::pages::{self, Asked, Page, Rewritten};
use crate::registry::Registry;
use crate::translate::{self, Alias, BulkAction};

impl Rpc {
    /// Passes on a request that is no call, and puts its reply into the client's names.
    ///
    /// # Errors
    /// Why there is no reply.
    pub async fn page(&self, head: &Parts, payload: Payload) -> HttpResult {
        let form = match &payload {
            Payload::Bytes(form) => Some(&form[..]),
            Payload::Nothing => None,
            Payload::NoLength => return self.pass_page(head, payload).await,
        };
        let Some(asked) = Asked::read(&head.method, &head.uri, form) else {
            return self.pass_page(head, payload).await;
        };
        self.answer_page(head, &asked, payload).await
    }

    async fn pass_page(&self, head: &Parts, payload: Payload) -> HttpResult {
        let share = share::of_page(&head.uri, form_of(&payload));
        forward::forward(&self.daemon, head, payload, share).await
    }

    async fn answer_page(&self, head: &Parts, asked: &Asked, payload: Payload) -> HttpResult {
        let asking = asking_head(head);
        let caller = Caller {
            head: &asking,
            update: &Update::default(),
        };
        if !self.needs_translation(&caller).await? {
            return self.pass_page(head, payload).await;
        }
        self.look_for(&caller, asked).await?;
        let hides = self.twiddler.with_registry(Registry::hides);
        if asked.page == Page::RestartAll && hides {
            return self.restart_all(&caller, head).await;
        }
        if let Some(alias) = self.alias(asked) {
            return self.named(head, asked, &alias, payload).await;
        }
        let response = self.pass_page(head, payload).await?;
        if asked.page == Page::Status && !self.twiddler.with_registry(Registry::is_plain) {
            return rewrite(response, |page| {
                self.twiddler
                    .with_registry(|registry| pages::status_back(registry, page))
            })
            .await;
        }
        Ok(response)
    }

    /// Sees whether hidden processes that matter here were started behind our back.
    async fn look_for(&self, caller: &Caller<'_>, asked: &Asked) -> Result<(), Failure> {
        let looked = match (asked.page, &asked.process) {
            (Page::Status, _) => self.look_at_all_hidden(caller).await,
            (_, Some(process)) => self.look_at_hidden(caller, process).await,
            (_, None) => Ok(()),
        };
        match looked {
            // What the daemon refuses now it refuses again, in the words of its pages.
            Ok(()) | Err(Failure::Fault(_)) => Ok(()),
            failure => failure,
        }
    }

    fn alias(&self, asked: &Asked) -> Option<Alias> {
        let process = asked.process.as_deref()?;
        self.twiddler
            .with_registry(|registry| translate::alias(registry, process))
    }

    /// Asks for the process under its real name.
    async fn named(
        &self,
        head: &Parts,
        asked: &Asked,
        alias: &Alias,
        payload: Payload,
    ) -> HttpResult {
        let (uri, form) = asked.naming(&alias.real);
        let uri = uri.as_ref().unwrap_or(&head.uri);
        let payload = form.map_or(payload, Payload::Bytes);
        let response = self.send(head, uri, payload).await?;
        match asked.page {
            Page::Log => Ok(response),
            Page::Tail => rewrite(response, |page| pages::tail_back(alias, page)).await,
            Page::Status | Page::Action | Page::RestartAll => {
                Ok(redirected(response, |location| {
                    pages::message_back(alias, location)
                }))
            }
        }
    }

    /// Stops and starts all but what is hidden. The redirect is the daemon's own, with its time.
    async fn restart_all(&self, caller: &Caller<'_>, head: &Parts) -> HttpResult {
        for verb in [BulkAction::Stop, BulkAction::Start] {
            let Some(whole) = BulkCall::all(verb, &[]) else {
                continue;
            };
            // Nor does the daemon say what became of each.
            match self.whole(caller, whole).await {
                Ok(_) | Err(Failure::Fault(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        let (uri, form) = pages::refresh();
        let payload = if head.method == Method::POST {
            Payload::Bytes(form)
        } else {
            Payload::Nothing
        };
        let response = self.send(head, &uri, payload).await?;
        Ok(redirected(response, pages::restarted))
    }

    async fn send(&self, head: &Parts, uri: &Uri, payload: Payload) -> HttpResult {
        let share = share::of_page(uri, form_of(&payload));
        let reply = forward::send(&self.daemon, head, uri, payload, share).await?;
        Ok(forward::for_client(head, reply))
    }
}

fn form_of(payload: &Payload) -> &[u8] {
    match payload {
        Payload::Bytes(form) => form,
        Payload::Nothing | Payload::NoLength => &[],
    }
}

/// What the proxy asks with on behalf of somebody who asked for a page.
pub(super) fn asking_head(head: &Parts) -> Parts {
    let (mut asking, ()) = Request::new(()).into_parts();
    asking.method = Method::POST;
    asking.uri = Uri::from_static("/RPC2");
    if let Some(peer) = head.extensions.get::<Origin>() {
        asking.extensions.insert(*peer);
    }
    for name in [AUTHORIZATION, HOST] {
        if let Some(value) = head.headers.get(&name) {
            asking.headers.insert(name, value.clone());
        }
    }
    asking
        .headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    asking
}

/// Puts another text into a page. Whatever is no page of the daemon's passes as it is.
async fn rewrite(response: Response<Body>, change: impl FnOnce(&str) -> Rewritten) -> HttpResult {
    if response.status() != StatusCode::OK {
        return Ok(response);
    }
    let (mut head, body) = response.into_parts();
    let body = collect(body).await?;
    let changed = std::str::from_utf8(&body).map_or(Rewritten::Same, change);
    let body = match changed {
        Rewritten::Same => Body::from(body),
        Rewritten::Page(page) => {
            head.headers
                .insert(CONTENT_LENGTH, HeaderValue::from(page.len()));
            Body::from(page)
        }
    };
    Ok(Response::from_parts(head, body))
}

/// Sends the client elsewhere than the daemon does.
fn redirected(
    mut response: Response<Body>,
    change: impl FnOnce(&str) -> Option<String>,
) -> Response<Body> {
    let location = response.headers().get(LOCATION);
    let changed = location
        .and_then(|value| value.to_str().ok())
        .and_then(change)
        .and_then(|location| HeaderValue::try_from(location).ok());
    if let Some(location) = changed {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}
