package jobs

import "time"

// What webhooks tell of: the "type" in their bodies.
const (
	HookRunning    = "job.running"  // its first step has started, as a heartbeat says: of a job that ends before the next, not at all
	HookRequeued   = "job.requeued" // an attempt ended, and another will follow
	HookEnded      = "job.ended"    // the job has ended, dead ones included
	HookBatchEnded = "batch.ended"  // every job of a batch has ended
	HookTest       = "webhook.test" // somebody asked for a try of the endpoint
)

// Hook is what a webhook's body says: the body itself in the format "standard", parts of it in the format "cloudevents".
type Hook struct {
	// Type is what it tells of.
	Type string `json:"type"`
	// Timestamp is when that happened; when it was sent is in the header webhook-timestamp.
	Timestamp time.Time `json:"timestamp"`
	// Data is what is told of it.
	Data HookData `json:"data"`
}

// MaxHookBytes is the most that a webhook's body has.
const MaxHookBytes = 20_000

// HookData is what a webhook tells: enough to decide by. All of a job is in its record, all of its output in its events.
type HookData struct {
	// Tenant is whose job or batch it is.
	Tenant string `json:"tenant"`
	// Job is the job's id, where it is told of one.
	Job string `json:"job,omitempty"`
	// Batch is the batch that the job came in with; or, without a job, the one that is told of.
	Batch string `json:"batch,omitempty"`
	// State is where the job stands.
	State State `json:"state,omitempty"`
	// Attempt is the attempt that is told of.
	Attempt int `json:"attempt,omitempty"`
	// Labels are the job's.
	Labels map[string]string `json:"labels,omitempty"`

	// Ending is the result's.
	Ending Ending `json:"ending,omitempty"`
	// Class is the result's.
	Class Class `json:"class,omitempty"`
	// Reason is the result's, or why another attempt follows.
	Reason string `json:"reason,omitempty"`
	// Limit is the result's.
	Limit string `json:"limit,omitempty"`
	// ExitCode is the result's.
	ExitCode *int `json:"exit_code,omitempty"`
	// Signal is the result's.
	Signal string `json:"signal,omitempty"`
	// Usage is of all steps.
	Usage Usage `json:"usage,omitzero"`
	// Stdout is the head of what the last step wrote to its standard output; its bytes say how much that was.
	Stdout Output `json:"stdout,omitzero"`
	// Stderr is the head of what it wrote to its standard error, likewise.
	Stderr Output `json:"stderr,omitzero"`
	// Artifacts is how many files were brought out.
	Artifacts int `json:"artifacts,omitempty"`
	// EndedAt is when the job or the batch ended.
	EndedAt time.Time `json:"ended_at,omitzero"`

	// Total is how many jobs the batch has.
	Total int `json:"total,omitempty"`
	// Ended is how many of them have ended.
	Ended int `json:"ended,omitempty"`
	// OK is how many of them have ended with the exit code 0.
	OK int `json:"ok,omitempty"`

	// Thinned says that something was left out, because the body would have been larger than MaxHookBytes: labels, or more of the output.
	Thinned bool `json:"thinned,omitempty"`
}

// Formats of webhooks' bodies.
const (
	FormatStandard    = "standard"    // a Hook, application/json
	FormatCloudEvents = "cloudevents" // CloudEvents 1.0 in structured mode, application/cloudevents+json; the Hook's data is its data
)

// Endpoint is a URL that a tenant has told of its jobs.
type Endpoint struct {
	// ID is a UUIDv7.
	ID string `json:"id"`
	// URL is where deliveries are sent, as POST.
	URL string `json:"url"`
	// Events are what it is told of.
	Events []string `json:"events"`
	// Format is "standard" or "cloudevents".
	Format string `json:"format"`
	// Description is the tenant's own.
	Description string `json:"description,omitempty"`
	// CreatedAt is when it was made.
	CreatedAt time.Time `json:"created_at"`
	// Enabled endpoints are told.
	Enabled bool `json:"enabled"`
	// DisabledReason is why one is not: somebody's doing, an answer of 410, or that it has failed for too long.
	DisabledReason string `json:"disabled_reason,omitempty"`
	// DisabledAt is since when.
	DisabledAt time.Time `json:"disabled_at,omitzero"`
	// FailingSince is when the deliveries began to fail of which none has succeeded since; zero where the last one succeeded.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Circuit is "open" while deliveries wait because too many have failed one after the other; else "closed".
	Circuit string `json:"circuit,omitempty"`
	// RetryAt is when the next is tried, while the circuit is open.
	RetryAt time.Time `json:"retry_at,omitzero"`
	// Secrets are those that deliveries are signed with, the newest first. Their values are told once, when they are made.
	Secrets []SecretInfo `json:"secrets,omitempty"`
}

// SecretInfo tells of a signing secret without its value.
type SecretInfo struct {
	// Hint is the value's last four characters.
	Hint string `json:"hint"`
	// CreatedAt is when it was made.
	CreatedAt time.Time `json:"created_at"`
	// ExpiresAt is when it signs no more; zero for the newest.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// DeliveryState is where a delivery stands.
type DeliveryState string

// The states of a delivery.
const (
	DeliveryPending   DeliveryState = "pending" // it will be tried, perhaps again
	DeliveryDelivered DeliveryState = "delivered"
	DeliveryFailed    DeliveryState = "failed" // it was tried as often as it is, or its endpoint is disabled
)

// Delivery is one event for one endpoint or callback.
type Delivery struct {
	// ID is a UUIDv7: the webhook-id of every try.
	ID string `json:"id"`
	// Endpoint is the endpoint's id; empty for a job's callback.
	Endpoint string `json:"endpoint,omitempty"`
	// URL is where it is sent: a callback's, or what the endpoint's was when the event happened.
	URL string `json:"url"`
	// Event is the type of what is told.
	Event string `json:"event"`
	// Job is the id of the job that is told of.
	Job string `json:"job,omitempty"`
	// Batch is the id of the batch that is told of.
	Batch string `json:"batch,omitempty"`
	// State is "pending" while it will be tried, perhaps again; "failed" is one that was tried as often as it is, or whose endpoint is disabled.
	State DeliveryState `json:"state"`
	// Attempts is how often it was tried.
	Attempts int `json:"attempts"`
	// CreatedAt is when it was written down, right after the event.
	CreatedAt time.Time `json:"created_at"`
	// NextAt is the earliest time of the next try, of a pending one.
	NextAt time.Time `json:"next_at,omitzero"`
	// EndedAt is when it was delivered or given up.
	EndedAt time.Time `json:"ended_at,omitzero"`
	// Error is why the last try failed.
	Error string `json:"error,omitempty"`
	// Tries are given where one delivery is asked for, the oldest first.
	Tries []Try `json:"tries,omitempty"`
	// Body is what is sent, where one delivery is asked for.
	Body string `json:"body,omitempty"`
}

// Try is one try at a delivery.
type Try struct {
	// Attempt counts from 1.
	Attempt int `json:"attempt"`
	// At is when it began.
	At time.Time `json:"at"`
	// DurationMS is from the beginning to the answer, or to what came instead.
	DurationMS float64 `json:"duration_ms"`
	// Status is the answer's; 0 where there was none.
	Status int `json:"status,omitempty"`
	// Error is why the try failed.
	Error string `json:"error,omitempty"`
	// Response is the beginning of the answer's body.
	Response string `json:"response,omitempty"`
}

// MaxTryResponse is how much of an answer's body a Try repeats.
const MaxTryResponse = 1 << 10
