package access

import (
	"strings"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Permissions are the subjects that somebody may publish on and subscribe to.
type Permissions struct {
	Publish, Subscribe Subjects
	// Answers is how long after a message one answer to its reply subject may be published; 0 allows none beyond Publish.
	Answers time.Duration
}

// Subjects are allowed unless denied.
type Subjects struct{ Allow, Deny []string }

// Of gives what an identity, a valid one, may do.
func Of(i Identity) Permissions {
	switch i.Role {
	case Tenant:
		return tenant(i)
	case Worker:
		return worker(i)
	case Monitor:
		return monitor(i)
	case Operator:
		return Permissions{Publish: Subjects{Allow: []string{">"}, Deny: []string{"$SYS.>"}}, Subscribe: Subjects{Allow: []string{">"}, Deny: []string{"$SYS.>"}}}
	}
	nothing := Subjects{Deny: []string{">"}}
	return Permissions{Publish: nothing, Subscribe: nothing}
}

// v1 are Paddock's subjects.
const v1 = "paddock." + jobs.Version + "."

// tenant gives nothing of $JS.API and $O. Whoever may make a consumer says where its messages go, and whoever may read a message directly
// says where the answer goes: with either, what a tenant has stored is published for it on a subject that it may not publish on.
func tenant(i Identity) Permissions {
	t := i.Name
	return Permissions{
		Publish: Subjects{Allow: []string{
			jobs.SubmitSubject(t), jobs.EnqueueSubject(t), jobs.GetSubject(t), jobs.ListSubject(t),
			jobs.CancelSubject(t, "*"), jobs.StdinSubject(t, "*"), jobs.SnapshotSubject(t, "*"), jobs.ResizeSubject(t, "*"),
			jobs.ReplaySubject(t),
			jobs.BatchSubject(t, "*"), jobs.ScheduleSubject(t, "*"), jobs.WebhookSubject(t, "*"), jobs.DeadSubject(t, "*"),
			jobs.ObjectSubject(t, "*"),
		}},
		Subscribe: Subjects{Allow: []string{
			v1 + "job." + t + ".>", v1 + "batch." + t + ".>", jobs.DLQSubject(t), i.Inbox() + ".>",
		}},
	}
}

// worker gives what leasing, running and reporting take, for jobs of whichever tenant. Of JetStream it gives events to read, which tells what
// of a job was published already, and objects. Making streams, buckets among them, is left to dispatchers.
func worker(i Identity) Permissions {
	ours := []string{jobs.StreamEvents, jobs.StreamSubmit, jobs.StreamDLQ}
	p := Permissions{
		Publish: Subjects{Allow: []string{
			FleetSubject(jobs.LeaseSubject, i.Name), FleetSubject(jobs.HeartbeatSubject, i.Name), FleetSubject(jobs.ReportSubject, i.Name),
			FleetSubject(BucketSubject, i.Name), FleetSubject(LendSubject, i.Name),
			jobs.EventSubjects,
			"$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET." + jobs.StreamEvents + ".>",
			"$JS.API.CONSUMER.CREATE." + jobs.StreamEvents + ".*." + v1 + "job.>", "$JS.API.CONSUMER.MSG.NEXT." + jobs.StreamEvents + ".*",
			"$JS.API.CONSUMER.DELETE." + jobs.StreamEvents + ".*",
			"$O.>", "$JS.API.DIRECT.GET.*.$O.>", "$JS.API.CONSUMER.CREATE.*.*.$O.>", "$JS.API.CONSUMER.DELETE.*.*", "$JS.API.STREAM.PURGE.*",
			"$JS.FC.>",
		}},
		Subscribe: Subjects{Allow: []string{
			jobs.StdinSubjects, jobs.SnapshotSubjects, jobs.ResizeSubjects, v1 + "worker." + i.Name + ".>", i.Inbox() + ".>",
		}},
		Answers: longestAnswer,
	}
	for _, stream := range ours {
		p.Publish.Deny = append(p.Publish.Deny, "$JS.API.STREAM.PURGE."+stream)
	}
	for _, stream := range []string{jobs.StreamSubmit, jobs.StreamDLQ} {
		p.Publish.Deny = append(p.Publish.Deny, "$JS.API.STREAM.MSG.GET."+stream, "$JS.API.CONSUMER.DELETE."+stream+".*")
	}
	return p
}

func monitor(i Identity) Permissions {
	return Permissions{
		Publish: Subjects{Allow: []string{
			jobs.GetSubjects, jobs.ListSubjects, jobs.ReplaySubjects, jobs.BatchSubject("*", "get"), jobs.BatchSubject("*", "list"), jobs.DeadSubject("*", "list"),
			jobs.ScheduleSubject("*", "get"), jobs.ScheduleSubject("*", "list"), jobs.FleetSubject("list"),
			"$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST",
			"$JS.API.CONSUMER.INFO.*.*", "$JS.API.CONSUMER.NAMES.*", "$JS.API.CONSUMER.LIST.*",
		}},
		Subscribe: Subjects{Allow: []string{jobs.EventSubjects, jobs.BatchEventSubjects, jobs.DLQSubjects, i.Inbox() + ".>"}},
	}
}

// BucketSubject is where workers ask for a tenant's bucket to be made.
const BucketSubject = v1 + "fleet.bucket"

// LendSubject is where workers ask to be let at an object of a tenant.
const LendSubject = v1 + "fleet.object"

// FleetSubject is a subject of workers' with the worker's name: the one who is given it cannot ask as another.
func FleetSubject(subject, worker string) string { return subject + "." + worker }

// Answerable tells whether the reply subject of a request on a subject is one of those who may send it. NATS lets everybody name any reply
// subject, and an answer would be published there with all the rights of the one who answers. It also keeps out the acknowledgments of
// JetStream that somebody has let go to such a subject: they want no answer.
func Answerable(subject, reply string) bool {
	t := strings.Split(strings.TrimPrefix(subject, v1), ".")
	if strings.HasPrefix(reply, operatorInboxes+".") {
		return true
	}
	if len(t) < 2 {
		return false
	}
	if t[0] == "fleet" && t[1] == "admin" { // asked by operators, who may have any inbox
		return strings.HasPrefix(reply, "_INBOX_") || strings.HasPrefix(reply, monitorInboxes)
	}
	if t[0] == "fleet" {
		return len(t) == 3 && strings.HasPrefix(reply, Identity{Worker, t[2]}.Inbox()+".")
	}
	return strings.HasPrefix(reply, Identity{Tenant, t[1]}.Inbox()+".") || strings.HasPrefix(reply, monitorInboxes)
}
