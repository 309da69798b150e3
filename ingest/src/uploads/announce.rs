//! The messages that follow from an upload's states: reports to every sink, events, and the copiers' work.

use shared::config::SinkConfig;
use shared::manifest::Transform;
use shared::message::{CopyUpload, Event, Message, ReportWork, Work};
use shared::report::{Report, Times};
use shared::upload::{Completed, UploadId, UploadRecord};

use super::{Uploads, status};

impl Uploads {
    /// What follows from a creation. Spec: reports.md §1; events.md §2, "pre-create" and "post-create".
    pub(super) fn announce_creation(&self, record: &mut UploadRecord, transforms: Vec<Transform>) {
        let (id, manifest, now) = (record.id, &record.manifest, record.created_at);
        let reports = [
            Report::metadata_transform(id, manifest, transforms, now),
            Report::upload_started(id, manifest, Times::at(now)),
            Report::upload_status(id, manifest, 0, record.length, Times::at(now)),
        ];
        let event = Event::UploadCreated {
            manifest: manifest.clone(),
            length: record.length,
        };
        let mut messages = self.for_each_sink(record, reports);
        messages.push(self.source.event(&event, id));
        record.outbox.append(&mut messages);
    }

    /// What follows from the last byte. The work comes first: reports must not hold up a copy. The sinks `unsure` may
    /// still get an older status: they get the final one once more.
    pub(super) fn announce_completion(&self, record: &mut UploadRecord, completed: &Completed, unsure: &[&str]) {
        let (id, manifest) = (record.id, &record.manifest);
        let size = completed.crc64nvme.covered();
        let times = Times::at(completed.at);
        let reports = [
            Report::upload_completed(id, manifest, times),
            Report::upload_status(id, manifest, size, Some(size), times),
        ];
        let work = Work::CopyUpload(CopyUpload {
            seq: record.seq + 1,
            size,
            crc64nvme: completed.crc64nvme,
            manifest: CopyUpload::carried(manifest),
            created_at: record.created_at,
            completed_at: completed.at,
        });
        let event = Event::UploadCompleted {
            manifest: manifest.clone(),
            size,
            crc64nvme: completed.crc64nvme,
        };
        let mut messages = vec![self.source.work(&work, id)];
        messages.append(&mut self.for_each_sink(record, reports.clone()));
        let [_, last] = reports;
        for sink in unsure {
            // After the time in which the older one would have been given up.
            messages.push(self.report(record, sink, &last).after(status::LONGEST));
        }
        messages.push(self.source.event(&event, id));
        record.outbox.append(&mut messages);
    }

    /// What follows from a deletion: no report (reports.md §1), one event.
    pub(super) fn termination_event(&self, id: UploadId, reason: &str) -> Message {
        self.source.event(
            &Event::UploadTerminated {
                reason: reason.to_owned(),
            },
            id,
        )
    }

    /// A message per report and sink, the reports of one sink in order.
    fn for_each_sink<const N: usize>(&self, record: &UploadRecord, reports: [Report; N]) -> Vec<Message> {
        let sinks = self.config.common.report_sinks.iter().map(SinkConfig::name);
        sinks
            .flat_map(|sink| reports.iter().map(move |report| self.report(record, sink, report)))
            .collect()
    }

    fn report(&self, record: &UploadRecord, sink: &str, report: &Report) -> Message {
        let work = Work::Report(Box::new(ReportWork {
            sink: sink.to_owned(),
            action: report.action(),
            seq: record.seq + 1,
            report: report.clone(),
        }));
        self.source.work(&work, record.id)
    }
}
