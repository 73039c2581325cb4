package jobs

// Subjects, version 1. A tenant and a job are single tokens: validation keeps dots, spaces and wildcards out of them.
const (
	prefix = "paddock." + Version + "."

	// SubmitSubjects, EnqueueSubjects, GetSubjects and ListSubjects end in the tenant.
	SubmitSubjects  = prefix + "submit.*"
	EnqueueSubjects = prefix + "enqueue.*"
	GetSubjects     = prefix + "get.*"
	ListSubjects    = prefix + "list.*"
	// ReplaySubjects too.
	ReplaySubjects = prefix + "replay.*"
	// EventSubjects, CancelSubjects and StdinSubjects hold the tenant and the job in the fourth and fifth token.
	EventSubjects  = prefix + "job.*.*.event"
	CancelSubjects = prefix + "job.*.*.cancel"
	StdinSubjects  = prefix + "job.*.*.stdin"
	// SnapshotSubjects and ResizeSubjects too: each is served by the worker that runs the job.
	SnapshotSubjects = prefix + "job.*.*.snapshot"
	ResizeSubjects   = prefix + "job.*.*.resize"
	DLQSubjects      = prefix + "dlq.*"

	// BatchSubjects, ScheduleSubjects, WebhookSubjects and DeadSubjects hold the tenant and what is asked in the fourth and fifth token.
	BatchSubjects    = prefix + "batch.*.*"
	ScheduleSubjects = prefix + "schedule.*.*"
	WebhookSubjects  = prefix + "webhook.*.*"
	DeadSubjects     = prefix + "dead.*.*"
	// ObjectSubjects too.
	ObjectSubjects = prefix + "object.*.*"
	// BatchEventSubjects hold the tenant and the batch.
	BatchEventSubjects = prefix + "batch.*.*.event"
	// FleetSubjects are an operator's: what is asked in the fifth token.
	FleetSubjects = prefix + "fleet.admin.*"

	LeaseSubject     = prefix + "fleet.lease"
	HeartbeatSubject = prefix + "fleet.heartbeat"
	ReportSubject    = prefix + "fleet.report"
	// LeaderSubject is where the dispatcher that leads says so to the others.
	LeaderSubject = prefix + "fleet.leader"
)

// Names of the JetStream streams.
const (
	StreamSubmit = "SUBMIT"
	StreamEvents = "EVENTS"
	StreamDLQ    = "DLQ"
)

// SubmitSubject is where a tenant's specs go as requests.
func SubmitSubject(tenant string) string { return prefix + "submit." + tenant }

// EnqueueSubject is where a tenant's specs go fire-and-forget.
func EnqueueSubject(tenant string) string { return prefix + "enqueue." + tenant }

// GetSubject answers for one job, ListSubject for many.
func GetSubject(tenant string) string  { return prefix + "get." + tenant }
func ListSubject(tenant string) string { return prefix + "list." + tenant }

// ReplaySubject gives events that have been.
func ReplaySubject(tenant string) string { return prefix + "replay." + tenant }

// EventSubject is where a job's events are.
func EventSubject(tenant, job string) string { return prefix + "job." + tenant + "." + job + ".event" }

// CancelSubject ends a job; StdinSubject feeds its first step.
func CancelSubject(tenant, job string) string {
	return prefix + "job." + tenant + "." + job + ".cancel"
}
func StdinSubject(tenant, job string) string { return prefix + "job." + tenant + "." + job + ".stdin" }

// SnapshotSubject takes requests for a snapshot of the job's machine, while the job runs.
func SnapshotSubject(tenant, job string) string {
	return prefix + "job." + tenant + "." + job + ".snapshot"
}

// ResizeSubject takes requests for another size of the job's machine, while the job runs.
func ResizeSubject(tenant, job string) string {
	return prefix + "job." + tenant + "." + job + ".resize"
}

// BatchSubject takes what is asked of batches: submit, get, list, cancel.
func BatchSubject(tenant, op string) string { return prefix + "batch." + tenant + "." + op }

// BatchEventSubject is where a batch's progress is.
func BatchEventSubject(tenant, batch string) string {
	return prefix + "batch." + tenant + "." + batch + ".event"
}

// ScheduleSubject takes what is asked of schedules: put, list, delete.
func ScheduleSubject(tenant, op string) string { return prefix + "schedule." + tenant + "." + op }

// WebhookSubject takes what is asked of webhook endpoints and their deliveries.
func WebhookSubject(tenant, op string) string { return prefix + "webhook." + tenant + "." + op }

// DeadSubject takes what is asked of dead jobs: redrive, drop.
func DeadSubject(tenant, op string) string { return prefix + "dead." + tenant + "." + op }

// ObjectSubject takes what is asked of objects: stat, put, get.
func ObjectSubject(tenant, op string) string { return prefix + "object." + tenant + "." + op }

// FleetSubject takes what an operator asks of the fleet: list, cordon, uncordon, drain, remove.
func FleetSubject(op string) string { return prefix + "fleet.admin." + op }

// DLQSubject is where what can never run goes.
func DLQSubject(tenant string) string { return prefix + "dlq." + tenant }

// ObjectBucket is the JetStream object store of a tenant.
func ObjectBucket(tenant string) string { return "paddock-objects-" + tenant }
