package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func runCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "run [flags] FILE [ARG…] | run [flags] -- CMD [ARG…]", Short: "Run a program in a machine, with its output here",
		Long: "Runs a source file (its language is told by its extension: .py, .sh, .bash) or a command in a machine of its own.\n" +
			"Standard input is passed through. The exit code is the program's; `docs/cli.md` lists what stands for limits.\n" +
			"Ctrl-C cancels the job; a second one leaves at once.",
		Example: "  paddock run hello.py\n  paddock run --image base -- sh -c 'uname -a'\n  paddock run --file data.csv:data.csv --artifact 'out/*' job.py",
		Args:    cobra.MinimumNArgs(1),
	}
	c.Flags().SetInterspersed(false)
	o := &runFlags{clientFlags: addClientFlags(c)}
	c.Flags().StringVar(&o.image, "image", "", "image to run in; a file's language has one of its own")
	c.Flags().StringArrayVar(&o.files, "file", nil, "HOST:GUEST, a file to put into the machine (may be repeated)")
	c.Flags().StringArrayVar(&o.artifacts, "artifact", nil, "path or pattern to bring out, into --artifact-dir (may be repeated)")
	c.Flags().StringVar(&o.artifactDir, "artifact-dir", ".", "where artifacts go")
	c.Flags().StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE (may be repeated)")
	c.Flags().StringVar(&o.user, "user", "", "sandbox (the default) or root")
	c.Flags().DurationVar(&o.wall, "time", 0, "wall time limit (60s)")
	c.Flags().DurationVar(&o.cpu, "cpu-time", 0, "cpu time limit (as --time)")
	c.Flags().Int64Var(&o.memoryMiB, "memory", 0, "memory limit in MiB (128)")
	c.Flags().Int64Var(&o.pids, "pids", 0, "processes and threads at once (128)")
	c.RunE = func(c *cobra.Command, args []string) error { return o.run(c, args, c.ArgsLenAtDash() == 0) }
	return c
}

// runFlags are the flags of `run`.
type runFlags struct {
	clientFlags
	image, artifactDir, user string
	files, artifacts, env    []string
	wall, cpu                time.Duration
	memoryMiB, pids          int64
}

func (o *runFlags) run(c *cobra.Command, args []string, isCommand bool) error {
	spec, err := o.spec(args, isCommand)
	if err != nil {
		return err
	}
	cl, err := o.connect()
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := o.putFiles(c.Context(), cl, spec); err != nil {
		return err
	}
	stdin := stdinOf(c.InOrStdin(), spec)
	r, err := cl.Submit(c.Context(), spec)
	if err != nil {
		return err
	}
	s := &session{c: cl, job: r.Job.ID, in: stdin, out: c.OutOrStdout(), err: c.ErrOrStderr(), artifacts: o.artifactDir}
	return s.watch(c.Context())
}

// spec is the job of the command line.
func (o *runFlags) spec(args []string, isCommand bool) (*jobs.Spec, error) {
	s := &jobs.Spec{Image: o.image, Limits: jobs.Limits{
		WallMS: o.wall.Milliseconds(), CPUMS: o.cpu.Milliseconds(), MemoryBytes: o.memoryMiB << 20, PIDs: o.pids,
	}}
	env := map[string]string{}
	for _, e := range o.env {
		k, v, ok := strings.Cut(e, "=")
		if !ok {
			return nil, fmt.Errorf("--env %s: want NAME=VALUE", e)
		}
		env[k] = v
	}
	step := jobs.Step{User: o.user, Env: env}
	switch {
	case isCommand:
		if s.Image == "" {
			s.Image = "base"
		}
		step.Cmd, step.Args = args[0], args[1:]
	default:
		source, err := os.ReadFile(args[0])
		if err != nil {
			return nil, fmt.Errorf("%w; a command is given after --", err)
		}
		language, ok := jobs.LanguageOf(args[0])
		if !ok {
			return nil, fmt.Errorf("%s: no language has this extension (known are %s); run it as a command: paddock run --file %s:prog -- ./prog",
				args[0], strings.Join(jobs.Languages(), ", "), args[0])
		}
		x := (&jobs.Spec{Language: language, Image: o.image, Source: string(source), Args: args[1:]}).Expand()
		s.Image, s.Files = x.Image, x.Files
		step.Cmd, step.Args = x.Steps[0].Cmd, x.Steps[0].Args
	}
	s.Steps = []jobs.Step{step}
	for _, a := range o.artifacts {
		s.Artifacts = append(s.Artifacts, jobs.Artifact{Path: a})
	}
	return s, nil
}

// putFiles puts the files of --file into the spec: inline as long as they fit, as objects otherwise.
func (o *runFlags) putFiles(ctx context.Context, cl *client.Client, spec *jobs.Spec) error {
	inline := 0
	for _, f := range spec.Files {
		inline += len(f.Text) + len(f.Base64)
	}
	for _, arg := range o.files {
		host, guest, ok := strings.Cut(arg, ":")
		if !ok {
			guest = filepath.Base(host)
		}
		f, err := os.Open(host)
		if err != nil {
			return fmt.Errorf("--file: %w", err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return fmt.Errorf("--file: %w", err)
		}
		if !st.Mode().IsRegular() {
			return fmt.Errorf("--file %s: not a regular file", host)
		}
		in := jobs.File{Path: guest, Mode: fmt.Sprintf("%04o", st.Mode().Perm())}
		if int(st.Size())+inline <= jobs.MaxInlineBytes {
			if in.Base64, err = io.ReadAll(f); err != nil {
				return fmt.Errorf("--file: %w", err)
			}
			inline += len(in.Base64)
		} else {
			ref, err := cl.PutObject(ctx, f)
			if err != nil {
				return fmt.Errorf("--file %s: %w", host, err)
			}
			in.Object = &ref
		}
		spec.Files = append(spec.Files, in)
	}
	return nil
}

// stdinOf decides how standard input reaches the program: nothing of it where it is empty at once, else as a stream.
func stdinOf(in io.Reader, spec *jobs.Spec) io.Reader {
	if f, ok := in.(*os.File); ok {
		st, err := f.Stat()
		if err != nil || st.Mode()&os.ModeCharDevice != 0 && !term.IsTerminal(int(f.Fd())) {
			return nil // closed, or /dev/null
		}
		if st.Mode().IsRegular() && st.Size() == 0 {
			return nil
		}
	}
	spec.StdinStream = true
	return in
}

// session shows a job here: output as it comes, input on its way, Ctrl-C as a cancel.
type session struct {
	c         *client.Client
	job       string
	in        io.Reader
	out, err  io.Writer
	artifacts string // directory for artifacts; empty: they are only named
	attempt   int
}

// watch follows the job to its end and gives the error to exit with.
func (s *session) watch(ctx context.Context) error {
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	go s.interrupts(ctx, signals, leave)
	feeding := false
	for e, err := range s.c.Follow(ctx, s.job, client.Position{}) {
		if err != nil {
			if errors.Is(context.Cause(ctx), errLeft) {
				say("left; the job goes on being canceled: paddock get %s", s.job)
				return exitError{exitCanceled}
			}
			return err
		}
		if e.Type == jobs.EventState && e.State == jobs.StateRunning && s.in != nil && !feeding {
			feeding = true // a retried attempt gets no input again: it has been read
			go s.feed(ctx)
		}
		s.print(e)
		if e.Final && e.Result != nil {
			if err := s.save(ctx, e.Result); err != nil {
				return err
			}
			return exitOf(*e.Result)
		}
	}
	return errors.New("the job's events ended before the job did")
}

var errLeft = errors.New("left at the second interrupt")

func (s *session) interrupts(ctx context.Context, signals <-chan os.Signal, leave context.CancelCauseFunc) {
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		if n > 0 {
			leave(errLeft)
			return
		}
		say("canceling; once more to leave at once")
		go func() {
			if _, err := s.c.Cancel(ctx, s.job); err != nil && ctx.Err() == nil {
				say("cancel: %v", err)
			}
		}()
	}
}

// feed passes standard input on. It stays in its read when the job ends; the process's end ends it.
func (s *session) feed(ctx context.Context) {
	to := s.c.Stdin(ctx, s.job)
	if _, err := io.Copy(to, s.in); err == nil {
		_ = to.Close() // a program that has ended takes no end of input
	}
}

// print shows an event to people.
func (s *session) print(e jobs.Event) {
	switch {
	case e.Attempt != s.attempt && s.attempt != 0 && e.Attempt > 1:
		say("attempt %d", e.Attempt)
	case e.Type == jobs.EventState && e.State == jobs.StateQueued:
		say("%s; it will be tried again", e.Reason)
	}
	s.attempt = e.Attempt
	if e.Type != jobs.EventOutput {
		return
	}
	w := s.out
	if e.Stream == jobs.Stderr {
		w = s.err
	}
	_, _ = w.Write(e.Data())
	if e.Truncated {
		say("%s truncated at its limit", e.Stream)
	}
}

// save writes artifacts below a directory; a path that leads out of it is refused.
func (s *session) save(ctx context.Context, r *jobs.Result) error {
	if s.artifacts == "" || len(r.Artifacts) == 0 {
		return nil
	}
	root, err := os.OpenRoot(s.artifacts)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing to lose
	for _, a := range r.Artifacts {
		name := strings.TrimPrefix(filepath.Clean("/"+a.Path), "/")
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return err
		}
		if err := errors.Join(s.fetch(ctx, a, f), f.Close()); err != nil {
			return fmt.Errorf("artifact %s: %w", a.Path, err)
		}
	}
	return nil
}

func (s *session) fetch(ctx context.Context, a jobs.ArtifactResult, to io.Writer) error {
	if a.Object == nil {
		_, err := to.Write(a.Data())
		return err
	}
	r, err := s.c.GetObject(ctx, *a.Object)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, r)
	return errors.Join(err, r.Close())
}
