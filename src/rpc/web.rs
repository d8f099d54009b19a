//! Web pages and logs that name placed or hidden processes, or list them.

use axum::body::Body;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::bulk::BulkCall;
use super::{Caller, ConnectionUpdate, Rpc, collect, share};
use crate::daemon::Origin;
use crate::failure::{Failure, HttpResult};
use crate::forward::{self, Payload};
use crate::pages::{self, Page, PageRequest, Rewritten};
use crate::registry::Registry;
use crate::translate::{self, BulkAction, NameMapping};

impl Rpc {
    /// Forwards a request that is no call, and rewrites the response into the client's names.
    ///
    /// # Errors
    /// The reason why there is no response.
    pub async fn page(&self, head: &Parts, payload: Payload) -> HttpResult {
        let form = match &payload {
            Payload::Bytes(form) => Some(&form[..]),
            Payload::Nothing => None,
            Payload::NoLength => return self.forward_page(head, payload).await,
        };
        let Some(request) = PageRequest::read(&head.method, &head.uri, form) else {
            return self.forward_page(head, payload).await;
        };
        self.answer_page(head, &request, payload).await
    }

    async fn forward_page(&self, head: &Parts, payload: Payload) -> HttpResult {
        let share = share::of_page(&head.uri, form_of(&payload));
        forward::forward(&self.daemon, head, payload, share).await
    }

    async fn answer_page(
        &self,
        head: &Parts,
        request: &PageRequest,
        payload: Payload,
    ) -> HttpResult {
        let call = call_head(head);
        let caller = Caller {
            head: &call,
            update: &ConnectionUpdate::default(),
        };
        if !self.needs_translation(&caller).await? {
            return self.forward_page(head, payload).await;
        }
        self.show_restarted_for(&caller, request).await?;
        let hides = self.twiddler.with_registry(Registry::hides);
        if request.page == Page::RestartAll && hides {
            return self.restart_all(&caller, head).await;
        }
        if let Some(mapping) = self.mapping(request) {
            return self
                .forward_with_real_name(head, request, &mapping, payload)
                .await;
        }
        let response = self.forward_page(head, payload).await?;
        if request.page == Page::Status
            && !self.twiddler.with_registry(Registry::needs_no_translation)
        {
            return rewrite(response, |page| {
                self.twiddler
                    .with_registry(|registry| pages::rewrite_status(registry, page))
            })
            .await;
        }
        Ok(response)
    }

    /// Ends the hiding of processes that the page concerns, if a client has started them directly on the
    /// daemon.
    async fn show_restarted_for(
        &self,
        caller: &Caller<'_>,
        request: &PageRequest,
    ) -> Result<(), Failure> {
        let result = match (request.page, &request.process) {
            (Page::Status, _) => self.check_all_hidden(caller).await,
            (_, Some(process)) => self.check_hidden(caller, process).await,
            (_, None) => Ok(()),
        };
        match result {
            // After a fault, the daemon refuses the page too, with a text for pages.
            Ok(()) | Err(Failure::Fault(_)) => Ok(()),
            failure => failure,
        }
    }

    fn mapping(&self, request: &PageRequest) -> Option<NameMapping> {
        let process = request.process.as_deref()?;
        self.twiddler
            .with_registry(|registry| translate::map_name(registry, process))
    }

    /// Forwards the request with the real name of the process.
    async fn forward_with_real_name(
        &self,
        head: &Parts,
        request: &PageRequest,
        mapping: &NameMapping,
        payload: Payload,
    ) -> HttpResult {
        let (uri, form) = request.with_process(&mapping.real);
        let uri = uri.as_ref().unwrap_or(&head.uri);
        let payload = form.map_or(payload, Payload::Bytes);
        let response = self.send(head, uri, payload).await?;
        match request.page {
            Page::Log => Ok(response),
            Page::Tail => rewrite(response, |page| pages::rewrite_tail(mapping, page)).await,
            Page::Status | Page::Action | Page::RestartAll => {
                Ok(with_location(response, |location| {
                    pages::rewrite_message(mapping, location)
                }))
            }
        }
    }

    /// Stops and starts all visible processes. The redirect is the daemon's reply to `refresh`, so that it has
    /// the daemon's time.
    async fn restart_all(&self, caller: &Caller<'_>, head: &Parts) -> HttpResult {
        for action in [BulkAction::Stop, BulkAction::Start] {
            let Some(bulk) = BulkCall::all(action, &[]) else {
                continue;
            };
            // As in the daemon, the result for each process is ignored.
            match self.run_bulk(caller, bulk).await {
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
        Ok(with_location(response, pages::rewrite_refresh_message))
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

/// The head for calls that the proxy makes on behalf of the client that requests a page.
pub(super) fn call_head(page: &Parts) -> Parts {
    let (mut call, ()) = Request::new(()).into_parts();
    call.method = Method::POST;
    call.uri = Uri::from_static("/RPC2");
    if let Some(peer) = page.extensions.get::<Origin>() {
        call.extensions.insert(*peer);
    }
    for name in [AUTHORIZATION, HOST] {
        if let Some(value) = page.headers.get(&name) {
            call.headers.insert(name, value.clone());
        }
    }
    call.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    call
}

/// Rewrites the text of a page. Other responses are returned unchanged.
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

/// Changes the target of a redirect.
fn with_location(
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
