package chaos

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// Ways in.
const (
	viaRequest = "request"
	viaEnqueue = "enqueue"
	viaBatch   = "batch"
	viaAsynq   = "asynq"
)

// job is one of the clients' jobs, what its answer is to be, and what its client knows of it.
type job struct {
	spec   jobs.Spec
	tenant string
	via    string
	token  string        // what it prints, before the number of its attempt
	code   int           // what it exits with in the end
	ending jobs.Ending   // how it ends: exited, unless a job that it depends on fails
	tries  int           // attempts that its own endings are to cost it; 0: not told, they depend on what else happens
	cancel time.Duration // when it is canceled after it was accepted; 0: it is not

	unheard   bool // the journal does not hear of it
	forgotten bool // it was acknowledged, and then forgotten by a broker with an older store

	mu       sync.Mutex
	accepted bool // its client was told so
	id       string
	ops      []operation
	finals   []jobs.Event // final events as they came to who listened, without repeats
	ended    time.Time    // when its client first knew that it has ended
}

// unit is what a client brings in at once: a job, jobs that depend on each other, or a batch.
type unit struct {
	jobs []*job
	via  string
}

// tenant is one of those whose quotas quotasFile has.
type tenant struct {
	name    string
	running int // at once, of a Width of 1; 0: not bounded
}

var tenants = []tenant{{"t0", 0}, {"t1", 5}, {"t2", 8}}

// keyLimit is how many jobs of one key may run at once, of a Width of 1.
const keyLimit = 2

func quotasFile(width int) string {
	var b strings.Builder
	b.WriteString("tenants:\n")
	for _, t := range tenants[1:] {
		fmt.Fprintf(&b, "  %s: {running: %d, queued: %d, per_second: 200, burst: 100}\n", t.name, t.running*width, 150*width)
	}
	return b.String()
}

// queueTTL is longer than any clock is ahead: a dispatcher that begins with such a one goes by it.
const queueTTL = 7 * 24 * time.Hour

// generator makes units; the same seed makes the same ones, but for their ids.
type generator struct {
	rand    *rand.Rand
	program string
	socket  string
	asynq   bool
	width   int
	// machines is how many of the jobs are for real machines.
	machines int
	n        int
}

// units makes them until there are so many jobs.
func (g *generator) units(count int) (l []unit) {
	made := 0
	for g.n < count {
		switch k := g.rand.IntN(100); {
		case made < g.machines*(g.n+1)/count: // spread among the others
			made++
			l = append(l, unit{[]*job{g.machine()}, viaRequest})
		case k < 4:
			l = append(l, g.pipeline())
		case k < 7:
			l = append(l, g.batch(5+g.rand.IntN(20)))
		case k < 22:
			l = append(l, unit{[]*job{g.one(viaEnqueue)}, viaEnqueue})
		case k < 27 && g.asynq:
			l = append(l, unit{[]*job{g.one(viaAsynq)}, viaAsynq})
		default:
			l = append(l, unit{[]*job{g.one(viaRequest)}, viaRequest})
		}
	}
	return l
}

// one makes a job of any kind.
func (g *generator) one(via string) *job {
	j := g.plain(via)
	switch k := g.rand.IntN(100); {
	case k < 10:
		j.code = 7
	case k < 15: // fails as often as it may
		j.code, j.tries = 75, 3
		j.spec.Retry = &jobs.Retry{Attempts: 3, Rules: []jobs.RetryRule{{ExitCodes: []int{75}, Action: jobs.ActionRetry}}}
	case k < 20: // fails in its first attempt; whether that is seen depends on what becomes of that
		j.spec.Retry = &jobs.Retry{Attempts: 3, Rules: []jobs.RetryRule{{ExitCodes: []int{75}, Action: jobs.ActionRetry}}}
		j.spec.Steps[0].Shell = `test $PADDOCK_ATTEMPT != 1 || exit 75; ` + j.spec.Steps[0].Shell
	case k < 30:
		j.spec.Concurrency = jobs.Concurrency{Key: fmt.Sprintf("key-%d", g.rand.IntN(3)), Limit: keyLimit * g.width}
	case k < 36 && via == viaRequest:
		j.cancel = time.Duration(1+g.rand.IntN(1500)) * time.Millisecond
		g.lasting(j, 1000+g.rand.IntN(2000))
	}
	g.finish(j)
	return j
}

// machine makes a job for a real machine. Its tenant has no cap of which it would be a part.
func (g *generator) machine() *job {
	j := g.plain(viaRequest)
	j.unheard, j.tenant = true, tenants[0].name
	j.spec.Pool, j.spec.Resources = machinePool, jobs.Resources{}
	j.spec.Steps[0].Shell = "true"
	g.finish(j)
	return j
}

// plain makes a job that does nothing but say that it ran.
func (g *generator) plain(via string) *job {
	g.n++
	ms := 2 + g.rand.IntN(30)
	switch k := g.rand.IntN(100); {
	case k < 3: // longer than a lease
		ms = int((leaseTTL + leaseGrace + time.Second).Milliseconds())
	case k < 12:
		ms = 500 + g.rand.IntN(1500)
	}
	priority, retries := g.rand.IntN(10), 10
	j := &job{tenant: tenants[g.rand.IntN(len(tenants))].name, via: via, token: fmt.Sprintf("answer-%x", g.rand.Uint64()), ending: jobs.Exited, id: jobs.NewID()}
	if via == viaAsynq {
		j.tenant = tenants[0].name
	} else {
		j.spec.ID, j.spec.IdempotencyKey = j.id, "chaos-"+j.id
	}
	j.spec.Image, j.spec.Priority, j.spec.InfraRetries = "base", &priority, &retries
	j.spec.QueueTTLMS = queueTTL.Milliseconds()
	j.spec.Resources = jobs.Resources{VCPUs: 1, MemoryMiB: 128}
	j.spec.Steps = []jobs.Step{{}}
	g.lasting(j, ms)
	return j
}

func (g *generator) lasting(j *job, ms int) {
	j.spec.Steps[0].Shell = fmt.Sprintf("%s %s %d || exit 99", g.program, g.socket, ms)
}

// finish has the program print its answer and end as it is to.
func (g *generator) finish(j *job) {
	j.spec.Steps[0].Shell += fmt.Sprintf("; echo %s $PADDOCK_ATTEMPT; exit %d", j.token, j.code)
}

// pipeline makes three jobs, each of which depends on the one before. One in five has a second that fails.
func (g *generator) pipeline() unit {
	u := unit{via: viaRequest}
	whose := ""
	for i := range 3 {
		j := g.plain(viaRequest)
		if i == 0 {
			whose = j.tenant
		} else {
			j.spec.DependsOn = []string{u.jobs[i-1].id}
		}
		j.tenant = whose
		if i == 1 && g.rand.IntN(5) == 0 {
			j.code = 7
		}
		if i == 2 && u.jobs[1].code != 0 {
			j.ending = jobs.DependencyFailed
		}
		g.finish(j)
		u.jobs = append(u.jobs, j)
	}
	return u
}

// batch makes jobs of one tenant that come in together.
func (g *generator) batch(n int) unit {
	u := unit{via: viaBatch}
	whose := tenants[g.rand.IntN(len(tenants))].name
	for range n {
		j := g.plain(viaBatch)
		j.tenant = whose
		g.finish(j)
		u.jobs = append(u.jobs, j)
	}
	return u
}

// judge says what is wrong with a result; empty where it is the job's known answer.
func (j *job) judge(r *jobs.Result) string {
	switch {
	case r == nil:
		return "it has no result"
	case j.cancel > 0 && r.Ending == jobs.Canceled:
		return ""
	case r.Ending != j.ending:
		return fmt.Sprintf("it ended %s (%s), and was to end %s", r.Ending, r.Reason, j.ending)
	case j.ending != jobs.Exited:
		return ""
	case r.ExitCode == nil || *r.ExitCode != j.code:
		return fmt.Sprintf("its exit code is %v, and was to be %d", r.ExitCode, j.code)
	}
	want := fmt.Sprintf("%s %d\n", j.token, r.Attempt)
	if got := r.Steps[len(r.Steps)-1].Stdout.Text; got != want {
		return fmt.Sprintf("it printed %q, and was to print %q", got, want)
	}
	return ""
}
