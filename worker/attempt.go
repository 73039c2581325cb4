package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/guestagent/client"
	"github.com/paddockvm/paddock/guestagent/wire"
	"github.com/paddockvm/paddock/jobs"
)

// attempt is one try at a job, from a lease to a report.
type attempt struct {
	w      *Worker
	lease  jobs.Lease
	spec   jobs.Spec // expanded: steps, files, no shorthand
	events *stream
	result jobs.Result
	start  time.Time
	input  io.ReadCloser // what viewers send while the first step runs; nil where the job does not stream it
	ungrow func()        // gives back what its machine has grown by, when that has ended; nil: nothing
	gone   bool          // the machine has ended, or does not answer: nothing can be brought out of it
}

// attempt begins an attempt at a lease.
func (w *Worker) attempt(ctx context.Context, l jobs.Lease) *attempt {
	a := &attempt{w: w, lease: l, spec: l.Spec.Expand(), start: time.Now()}
	a.events = newStream(w.cfg.Events, &w.session, &spill{of: w.spills}, l, zerolog.Ctx(ctx))
	a.result.Phases.QueuedMS = l.QueuedMS
	return a
}

// run is the attempt, up to its machine's end.
func (a *attempt) run(ctx context.Context) jobs.Result {
	a.inMachine(ctx)
	a.finish()
	return a.result
}

// inMachine is the attempt itself: a machine from the pool, files in, steps, artifacts out, and the machine's end.
func (a *attempt) inMachine(ctx context.Context) {
	if a.rootRefused() {
		return
	}
	m, err := a.claim(ctx)
	if err != nil {
		a.fail(ctx, nil, err)
		return
	}
	if err := m.blame(ctx, a.inside(ctx, m)); err != nil {
		a.fail(ctx, m, err)
	}
	start := time.Now()
	if err := m.Close(); err != nil { // dead before anybody hears of the result
		zerolog.Ctx(ctx).Error().Err(err).Str("machine", m.ID()).Msg("close machine")
	}
	if a.ungrow != nil {
		a.ungrow()
	}
	a.result.Phases.DestroyMS = ms(time.Since(start))
}

// inside is what happens while the machine lives. An error is ours or the policy's; the program's failure is in the result. A panic is
// a bug of ours: it costs this attempt, not the others that this process runs.
func (a *attempt) inside(ctx context.Context, m *machine) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			zerolog.Ctx(ctx).Error().Interface("panic", bug).Bytes("stack", debug.Stack()).Msg("bug in the worker")
			err = &failure{jobs.HostResources, fmt.Errorf("a bug in the worker: %v", bug)}
		}
	}()
	if ok, err := a.connect(ctx, m); err != nil || !ok {
		return err
	}
	if ok, err := a.copyIn(ctx, m); err != nil || !ok {
		return err
	}
	stop, err := a.openStdin(ctx)
	if err != nil {
		return err
	}
	defer stop()
	a.w.held.running(a.lease.Held)
	a.events.add(jobs.Event{Type: jobs.EventState, State: jobs.StateRunning, Worker: a.w.cfg.Name})
	closePorts, err := a.openPorts(ctx, m)
	if err != nil {
		return err
	}
	defer closePorts()
	defer a.serveSnapshots(ctx, m)()
	defer a.serveResizes(ctx, m)()
	start := time.Now()
	err = a.steps(ctx, m)
	a.result.Phases.RunMS = ms(time.Since(start))
	if err != nil || a.gone {
		return err
	}
	return a.copyOut(ctx, m)
}

// rootRefused ends a job whose image lets no step run as root. Admission says so to clients, where it knows the image.
func (a *attempt) rootRefused() bool {
	image := a.w.pools.offered(a.lease.Image)
	for _, s := range a.spec.Steps {
		if image.NoRoot && s.User == "root" {
			a.result.Ending, a.result.Reason = jobs.StartFailed, "the image lets no step run as root"
			return true
		}
	}
	return false
}

// claim takes a machine; the pool makes one where none is ready.
func (a *attempt) claim(ctx context.Context) (*machine, error) {
	if err := a.ownSnapshot(); err != nil {
		return nil, err
	}
	c, err := a.w.pools.take(ctx, a.lease.Image, a.spec.Shape())
	if err != nil {
		var f *failure
		if errors.As(err, &f) {
			return nil, ended(ctx, f.ending, f.err)
		}
		return nil, ended(ctx, jobs.VMFailed, err)
	}
	a.result.Machine, a.result.Template = c.ID(), c.template
	p := &a.result.Phases
	p.ClaimMS, p.RestoreMS, p.ReadyMS, p.FromPool = ms(time.Since(a.start)), ms(c.restored), ms(c.ready), c.fromPool
	return c.machine, nil
}

// steps runs the steps in order until one does not exit with 0.
func (a *attempt) steps(ctx context.Context, m *machine) error {
	for i := range a.spec.Steps {
		r, err := a.step(ctx, m, i)
		if err != nil {
			return err
		}
		a.result.Steps = append(a.result.Steps, r)
		a.events.add(jobs.Event{Type: jobs.EventStep, Step: i, StepResult: &r})
		if a.sum(r); r.Ending != jobs.Exited || *r.ExitCode != 0 {
			return nil
		}
	}
	return nil
}

// step runs one program and streams its output.
func (a *attempt) step(ctx context.Context, m *machine, i int) (jobs.StepResult, error) {
	s := &a.spec.Steps[i]
	limits := a.spec.StepLimits(*s)
	stdout, stderr := &output{events: a.events, step: i, name: jobs.Stdout}, &output{events: a.events, step: i, name: jobs.Stderr}
	stdin := a.stdin(i)
	if stdin != nil {
		defer stdin.Close() // a write that waits for the program ends
	}

	// The guest enforces the wall limit; a guest that does not is ended from here.
	wall := time.Duration(limits.WallMS) * time.Millisecond
	execCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	start, waited := time.Now(), a.events.waitedFor()
	defer a.endWhenDeaf(ctx, cancel, wall+a.w.cfg.GuestSlack, func(ctx context.Context) error {
		if a.tampered(i) || m.agent.Ping(ctx) == nil {
			return errGuestDeaf
		}
		return errGuestSilent
	})()
	defer a.terminateOn(ctx, m, execID(i), func() { cancel(nil) })()
	defer context.AfterFunc(execCtx, a.events.interrupt)()

	exit, err := m.agent.Exec(execCtx, a.exec(i, limits, stdin != nil), client.Streams{Stdin: stdin, Stdout: stdout, Stderr: stderr})
	if ctx.Err() != nil {
		return jobs.StepResult{}, context.Cause(ctx)
	}
	if cause := context.Cause(execCtx); err != nil && (errors.Is(cause, errGuestDeaf) || errors.Is(cause, errGuestSilent)) {
		err = cause
	}
	exit = believable(exit)
	r := jobs.StepResult{Name: s.Name}
	if r.Name == "" {
		r.Name = strconv.Itoa(i)
	}
	var outErr, errErr error
	r.Stdout, outErr = stdout.close(exit.StdoutDropped)
	r.Stderr, errErr = stderr.close(exit.StderrDropped)
	if err == nil {
		err = errors.Join(outErr, errErr)
	}
	if err == nil && exit.Limit == wire.LimitWall || errors.Is(err, errGuestDeaf) || errors.Is(err, errGuestSilent) {
		if held := a.events.waitedFor() - waited; held > wall/heldPart {
			return r, &failure{jobs.HostResources, fmt.Errorf("the host did not take the program's output for %v of its wall time limit", held.Round(time.Millisecond))}
		}
	}
	if err != nil {
		r.Usage.WallMS = ms(time.Since(start))
		return a.stepFailed(m, r, err)
	}
	describe(&r, exit)
	return r, nil
}

// heldPart is the part of its wall limit for which a program may have waited for us and the limit still is its own: a hundredth is less than
// two runs of it differ by.
const heldPart = 100

// endWhenDeaf ends a step whose guest has not ended it within d; why says with what cause, within pingWithin. The time in which we took
// nothing from the guest does not count: it could not tell us. The function that it gives ends the watch.
func (a *attempt) endWhenDeaf(ctx context.Context, end context.CancelCauseFunc, d time.Duration, why func(context.Context) error) (stop func()) {
	start, waited := time.Now(), a.events.waitedFor()
	watch, done := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for left := d; left > 0; left = d - time.Since(start) + a.events.waitedFor() - waited {
			t := time.NewTimer(left)
			select {
			case <-watch.Done():
				t.Stop()
				return
			case <-t.C:
			}
		}
		asking, asked := context.WithTimeout(watch, pingWithin)
		defer asked()
		if cause := why(asking); watch.Err() == nil {
			end(cause)
		}
	}()
	return func() {
		done()
		<-ended
	}
}

// pingWithin is how long an agent that has not ended a step in time may take to say that it lives. With GuestSlack it is the two seconds in
// which a job ends after its limit.
const pingWithin = 500 * time.Millisecond

// tampered tells whether a program of the attempt may have silenced the agent: root can. Whoever else runs in a machine has no way to it.
func (a *attempt) tampered(step int) bool {
	return slices.ContainsFunc(a.spec.Steps[:step+1], func(s jobs.Step) bool { return s.User == "root" })
}

// stepFailed tells a step that could not be run to its end by the program's doing from one that we failed.
func (a *attempt) stepFailed(m *machine, r jobs.StepResult, err error) (jobs.StepResult, error) {
	var refused *wire.Error
	switch {
	case errors.Is(err, errGuestDeaf):
		a.gone = true
		r.Ending, r.Limit, r.Reason = jobs.TimeLimit, wire.LimitWall, "the machine did not end the step at its limit; the worker ended the machine"
		return r, nil
	case errors.Is(err, errGuestSilent):
		return r, &failure{jobs.AgentLost, err}
	case errors.As(err, &refused) && (refused.Kind == wire.ErrStart || refused.Kind == wire.ErrTooLarge):
		r.Ending, r.Reason = jobs.StartFailed, said(refused.Message)
		return r, nil
	}
	if exit, over := a.overBy(m); over && exit.Guest {
		a.gone = true
		r.Ending, r.Reason = jobs.VMExited, "the program ended its machine: "+exit.Reason
		return r, nil
	}
	return r, err
}

// The causes with which a step's context ends when the guest does not enforce its limit: it lives and is slow, or was tampered with; or
// it says nothing any more, which is no program's doing.
var (
	errGuestDeaf   = errors.New("the guest did not end the step at its wall limit")
	errGuestSilent = errors.New("the guest's agent says nothing any more; the step's wall limit has passed")
)

// terminateOn passes a cancel on to the program, politely first. The function it gives ends the watch.
func (a *attempt) terminateOn(ctx context.Context, m *machine, id string, kill func()) (stop func()) {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-done:
			return
		case <-ctx.Done():
		}
		defer kill()
		if !errors.Is(context.Cause(ctx), errCanceled) {
			return // no grace for an attempt that is not ours, or for a worker that must stop
		}
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.w.cfg.CancelGrace)
		defer cancel()
		if err := m.agent.Signal(grace, id, "SIGTERM"); err != nil {
			return
		}
		select {
		case <-done:
		case <-grace.Done():
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// exec is the step in the agent's words.
func (a *attempt) exec(i int, l jobs.Limits, stdin bool) wire.Exec {
	s := &a.spec.Steps[i]
	argv := append([]string{s.Cmd}, s.Args...)
	if s.Shell != "" {
		argv = []string{"/bin/sh", "-c", s.Shell}
	}
	user := s.User
	if user == "" {
		user = "sandbox"
	}
	e := wire.Exec{
		ID: execID(i), Argv: argv, Env: a.env(user, s.Env), Cwd: s.Cwd, User: user, StdinOpen: stdin,
		Limits: wire.ExecLimits{
			WallMS: l.WallMS, CPUMS: l.CPUMS, MemoryBytes: l.MemoryBytes, PIDs: l.PIDs, OutputBytes: l.OutputBytes,
			FileBytes: l.FileBytes, DiskBytes: l.DiskBytes, OpenFiles: l.OpenFiles,
		},
	}
	if i == 0 { // the machine may have waited for days, and the host's clock been set; later ones are the job's to set
		e.TimeUnixNS = time.Now().UnixNano()
	}
	return e
}

// env is a step's environment: the image's, ours, its own, each over the one before. No name is in it twice: of two, programs take one each.
func (a *attempt) env(user string, own map[string]string) []string {
	vars := map[string]string{}
	for _, kv := range a.w.cfg.Images.Env(a.lease.Image) {
		k, v, _ := strings.Cut(kv, "=")
		vars[k] = v
	}
	maps.Copy(vars, map[string]string{
		"PADDOCK_JOB": a.lease.Job, "PADDOCK_ATTEMPT": strconv.Itoa(a.lease.Attempt), "HOME": "/work", "USER": user,
	})
	maps.Copy(vars, own)
	env := make([]string, 0, len(vars))
	for k, v := range vars {
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}

func execID(i int) string { return "step-" + strconv.Itoa(i) }

// openStdin takes the viewers' chunks from before anybody hears that the job runs, where the job streams its input.
func (a *attempt) openStdin(ctx context.Context) (stop func(), err error) {
	if !a.spec.StdinStream || a.w.cfg.Stdin == nil {
		return func() {}, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	serve, err := a.w.cfg.Stdin.OpenStdin(ctx, a.lease.Tenant, a.lease.Job, w)
	if err != nil {
		cancel()
		return nil, ended(ctx, jobs.HostResources, err)
	}
	a.input = r
	served := make(chan struct{})
	go func() {
		defer close(served)
		serve()
		_ = w.Close() // a pipe
	}()
	return func() {
		_ = r.Close()
		cancel()
		<-served
	}, nil
}

// stdin is what a step reads: its own text, the viewers' chunks, or nothing (nil).
func (a *attempt) stdin(i int) io.ReadCloser {
	if text := a.spec.Steps[i].Stdin; text != "" {
		return io.NopCloser(strings.NewReader(text))
	}
	if i == 0 {
		return a.input
	}
	return nil
}

// finish fills in what all results have.
func (a *attempt) finish() {
	r := &a.result
	r.Attempt, r.Worker, r.Class, r.EndedAt = a.lease.Attempt, a.w.cfg.Name, r.Ending.Class(), time.Now().UTC()
	r.Degraded = a.w.cfg.Caps.Degraded
	r.Reason = said(r.Reason)
	fitOutputs(r.Steps)
	r.Phases.TotalMS = r.Phases.QueuedMS + ms(time.Since(a.start))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// failure is an attempt's end by our own fault or by policy, as an error on its way up.
type failure struct {
	ending jobs.Ending
	err    error
}

func (f *failure) Error() string { return fmt.Sprintf("%s: %v", f.ending, f.err) }
func (f *failure) Unwrap() error { return f.err }

// ended gives err as a failure, unless the attempt's context ended first.
func ended(ctx context.Context, e jobs.Ending, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &failure{e, err}
}
