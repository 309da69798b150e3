//! Traces: spans of Ferry's own steps, with ids that are made and carried whether or not anybody records them.
//! Spec: bus.md, "Two kinds of messages"; faults.md 74.
//!
//! Spans are per request, job, target and report, never per chunk: their cost is then nothing beside the work.

use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _, TraceId, TracerProvider as _};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    Sampler, SamplingDecision, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample, SpanProcessor,
};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::context::{Ids, SPANS};
use crate::build;
use crate::config::{TraceChoice, TraceSampler};

/// Makes spans by `sampler` and hands those that are recorded to `export`. Without that the ids are made and carried
/// all the same, and recorded is what a sender says is.
pub(super) fn tracer(sampler: TraceSampler, export: Option<impl SpanProcessor + 'static>) -> SdkTracer {
    // The resource goes out with the spans, from where they are sent: the SDK needs none.
    let provider = SdkTracerProvider::builder()
        .with_id_generator(Ids::default())
        .with_resource(Resource::builder_empty().build());
    let provider = match export {
        Some(export) => provider.with_sampler(chosen(sampler)).with_span_processor(export),
        None => provider.with_sampler(by_parent(Sampler::AlwaysOff)),
    };
    let scope = InstrumentationScope::builder("ferry")
        .with_version(build::RELEASE)
        .build();
    provider.build().tracer_with_scope(scope)
}

/// Turns the spans of [`SPANS`], and nothing else, into those of `tracer`: no log line becomes a part of a span, for
/// lines may say what traces must not (security.md 12).
pub(super) fn layer<S>(tracer: SdkTracer) -> impl Layer<S>
where
    S: Subscriber + for<'l> LookupSpan<'l> + Send + Sync,
{
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == SPANS))
}

fn chosen(sampler: TraceSampler) -> Box<dyn ShouldSample> {
    let root = match sampler.choice {
        TraceChoice::All => Sampler::AlwaysOn,
        TraceChoice::None => Sampler::AlwaysOff,
        TraceChoice::Ratio(ratio) => Sampler::TraceIdRatioBased(ratio),
    };
    if sampler.parent_based {
        by_parent(root)
    } else {
        Box::new(root)
    }
}

fn by_parent(root: Sampler) -> Box<dyn ShouldSample> {
    Box::new(Sampler::ParentBased(Box::new(ByLink(root))))
}

/// Of a span without a parent: what follows recorded work is recorded, and what follows unrecorded work is not;
/// what follows nothing is up to the sampler within.
#[derive(Clone, Debug)]
struct ByLink(Sampler);

impl ShouldSample for ByLink {
    fn should_sample(
        &self,
        parent_context: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        span_kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let Some(followed) = links.first() else {
            let Self(within) = self;
            return within.should_sample(parent_context, trace_id, name, span_kind, attributes, links);
        };
        SamplingResult {
            decision: if followed.span_context.is_sampled() {
                SamplingDecision::RecordAndSample
            } else {
                SamplingDecision::Drop
            },
            attributes: Vec::new(),
            trace_state: parent_context
                .map(|context| context.span().span_context().trace_state().clone())
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{Span, SpanData};
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::super::context::{Origin, TraceContext, begin};
    use super::*;
    use crate::upload::UploadId;

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut Span, _: &Context) {}
        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }
        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }
        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn sampler(choice: TraceChoice) -> TraceSampler {
        TraceSampler {
            choice,
            parent_based: true,
        }
    }

    /// What `work` makes with this tracer.
    fn made(tracer: SdkTracer, work: impl FnOnce()) {
        let subscriber = tracing_subscriber::registry().with(layer(tracer));
        tracing::subscriber::with_default(subscriber, work);
    }

    /// The context inside of a span that begins at `origin`.
    fn inside(origin: Origin) -> TraceContext {
        let span = begin(tracing::info_span!(target: SPANS, parent: None, "work"), origin);
        let _entered = span.enter();
        TraceContext::current().expect("inside of a span")
    }

    fn context(text: &str) -> TraceContext {
        TraceContext::parse(text, Some("vendor=1")).unwrap()
    }

    #[test]
    fn ids_are_made_and_carried_although_nothing_is_exported() {
        made(tracer(sampler(TraceChoice::All), None::<Kept>), || {
            let sampled = inside(Origin::Within(context(SAMPLED)));
            assert_eq!(sampled.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert!(sampled.is_sampled(), "somebody else records it");
            assert_ne!(sampled.to_string(), SAMPLED, "a span of its own");
            assert!(!inside(Origin::Within(context(UNSAMPLED))).is_sampled());
            let id = UploadId::random();
            let (first, second) = (inside(Origin::Upload(id, None)), inside(Origin::Upload(id, None)));
            assert_eq!(first.trace_id().to_string(), second.trace_id().to_string());
            assert!(!first.is_sampled());
            assert!(inside(Origin::Upload(id, Some(context(SAMPLED)))).is_sampled());
        });
        assert_eq!(TraceContext::current(), None);
    }

    #[test]
    fn what_follows_is_recorded_if_what_it_follows_was() {
        let kept = Kept::default();
        made(tracer(sampler(TraceChoice::All), Some(kept.clone())), || {
            let id = UploadId::random();
            assert!(inside(Origin::Upload(id, None)).is_sampled());
            assert!(!inside(Origin::Upload(id, Some(context(UNSAMPLED)))).is_sampled());
            assert!(inside(Origin::Upload(id, Some(context(SAMPLED)))).is_sampled());
        });
        let spans = kept.0.lock().unwrap().clone();
        assert_eq!(spans.len(), 2);
        assert!(spans[0].links.links.is_empty());
        assert_eq!(
            spans[1].links.links[0].span_context.span_id().to_string(),
            "00f067aa0ba902b7"
        );
        made(tracer(sampler(TraceChoice::None), Some(kept.clone())), || {
            assert!(!inside(Origin::Upload(UploadId::random(), None)).is_sampled());
            assert!(inside(Origin::Within(context(SAMPLED))).is_sampled());
        });
    }

    #[test]
    fn log_lines_are_no_part_of_a_span_and_children_are_found_by_themselves() {
        let kept = Kept::default();
        made(tracer(sampler(TraceChoice::All), Some(kept.clone())), || {
            let request = tracing::info_span!(target: SPANS, parent: None, "request", otel.kind = "server");
            request.in_scope(|| {
                let finish = tracing::info_span!(target: SPANS, "finish", ferry.upload_id = "1");
                finish.in_scope(|| tracing::error!(secret = "canary", "a line"));
                let _other = tracing::info_span!("of somebody else").entered();
            });
        });
        let spans = kept.0.lock().unwrap();
        let [finish, request] = &spans[..] else {
            panic!("{spans:?}")
        };
        assert_eq!((finish.name.as_ref(), request.name.as_ref()), ("finish", "request"));
        assert_eq!(finish.parent_span_id, request.span_context.span_id());
        assert_eq!(request.span_kind, SpanKind::Server);
        assert!(finish.events.events.is_empty());
        let names: Vec<&str> = finish
            .attributes
            .iter()
            .map(|attribute| attribute.key.as_str())
            .collect();
        assert_eq!(names, ["ferry.upload_id"]);
    }
}
