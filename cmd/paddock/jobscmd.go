package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func signalNumber(name string) int { return int(unix.SignalNum(name)) }

// clientFlags are what every command that speaks to a server takes.
type clientFlags struct{ nats, tenant *string }

func addClientFlags(c *cobra.Command) clientFlags {
	return clientFlags{
		nats:   c.Flags().String("nats", envOr("PADDOCK_NATS", client.DefaultURL), "NATS server (PADDOCK_NATS)"),
		tenant: c.Flags().String("tenant", envOr("PADDOCK_TENANT", "default"), "whose jobs (PADDOCK_TENANT)"),
	}
}

func envOr(name, v string) string {
	if e := os.Getenv(name); e != "" {
		return e
	}
	return v
}

func (f clientFlags) connect() (*client.Client, error) {
	return client.Connect(*f.nats, client.Tenant(*f.tenant))
}

func submitCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "submit -f FILE", Short: "Submit a job spec (JSON or YAML) and print its id", Args: cobra.NoArgs,
		Example: "  paddock submit -f job.yaml\n  echo '{\"language\":\"python\",\"source\":\"print(1)\"}' | paddock submit -f - --wait",
	}
	flags := addClientFlags(c)
	out := outputFlag(c)
	file := c.Flags().StringP("file", "f", "", "the spec's file, - for standard input")
	wait := c.Flags().Bool("wait", false, "show the output, wait for the end, and exit as the program did")
	c.RunE = func(c *cobra.Command, _ []string) error {
		spec, err := readSpec(*file, c.InOrStdin())
		if err != nil {
			return err
		}
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		r, err := cl.Submit(c.Context(), spec)
		if err != nil {
			return err
		}
		for _, w := range r.Warnings {
			say("warning: %s", w)
		}
		if !*wait {
			return show(c.OutOrStdout(), *out, r, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, r.Job.ID)
				return err
			})
		}
		s := &session{c: cl, job: r.Job.ID, out: c.OutOrStdout(), err: c.ErrOrStderr()}
		return s.watch(c.Context())
	}
	return c
}

// readSpec reads a spec strictly: an unknown field here is a mistake, not a newer client.
func readSpec(file string, stdin io.Reader) (*jobs.Spec, error) {
	if file == "" {
		return nil, errors.New("no spec: give one with -f FILE, or -f - for standard input")
	}
	var b []byte
	var err error
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(stdin, jobs.MaxSpecBytes+1))
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	if t := bytes.TrimSpace(b); len(t) > 0 && t[0] != '{' { // YAML holds JSON, but its faults would name other places
		var tree any
		if err := yaml.Unmarshal(b, &tree); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if b, err = json.Marshal(tree); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	spec, _, err := jobs.Decode(b, jobs.Strict)
	return spec, err
}

func getCommand() *cobra.Command {
	c := &cobra.Command{Use: "get JOB", Short: "Show a job's record and result", Args: cobra.ExactArgs(1)}
	flags := addClientFlags(c)
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		j, err := cl.Get(c.Context(), args[0])
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *out, j, func(w io.Writer) error { return printJob(w, j) })
	}
	return c
}

func printJob(to io.Writer, j jobs.Job) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	line := func(k, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", k, fmt.Sprintf(format, args...)) }
	line("id", "%s", j.ID)
	line("state", "%s", j.State)
	line("image", "%s", j.Image)
	line("accepted", "%s", j.AcceptedAt.Local().Format(time.DateTime))
	if j.Attempt > 0 {
		line("attempt", "%d on %s", j.Attempt, j.Worker)
	}
	if j.CancelRequested {
		line("cancel", "requested")
	}
	if r := j.Result; r != nil {
		line("ending", "%s", r.Ending)
		if r.Reason != "" {
			line("reason", "%s", r.Reason)
		}
		if r.ExitCode != nil {
			line("exit code", "%d", *r.ExitCode)
		}
		if r.Signal != "" {
			line("signal", "%s", r.Signal)
		}
		line("used", "%.0f ms wall, %.0f ms cpu, %.1f MiB at most", r.Usage.WallMS, r.Usage.CPUMS, float64(r.Usage.MemoryPeakBytes)/(1<<20))
		p := r.Phases
		line("phases, ms", "queued %.1f, claim %.1f, copy in %.1f, run %.1f (in the guest %.1f), copy out %.1f, destroy %.1f, total %.1f",
			p.QueuedMS, p.ClaimMS, p.CopyInMS, p.RunMS, p.GuestMS, p.CopyOutMS, p.DestroyMS, p.TotalMS)
		if r.Machine != "" {
			from := "made for it"
			if p.FromPool {
				from = "from the pool"
			}
			line("machine", "%s, %s: restored in %.1f ms, ready after %.1f more", r.Machine, from, p.RestoreMS, p.ReadyMS)
			line("template", "%.16s", r.Template)
		}
		if len(r.Degraded) > 0 {
			line("degraded", "%s", strings.Join(r.Degraded, ", "))
		}
		for _, a := range r.Artifacts {
			line("artifact", "%s, %d bytes, sha256 %.16s", a.Path, a.Size, a.SHA256)
		}
	}
	return w.Flush()
}

func lsCommand() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List jobs, newest first", Args: cobra.NoArgs}
	flags := addClientFlags(c)
	out := outputFlag(c)
	limit := c.Flags().IntP("limit", "n", 50, "how many")
	before := c.Flags().String("before", "", "go on after this id")
	states := c.Flags().StringSlice("state", nil, "only these states: queued, leased, running, ended, dead")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		q := jobs.ListRequest{Limit: *limit, Before: *before}
		for _, s := range *states {
			q.States = append(q.States, jobs.State(s))
		}
		r, err := cl.List(c.Context(), q)
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *out, r, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "JOB\tSTATE\tENDING\tIMAGE\tATTEMPT\tACCEPTED")
			for _, j := range r.Jobs {
				ending := ""
				if j.Result != nil {
					if ending = string(j.Result.Ending); j.Result.ExitCode != nil {
						ending += fmt.Sprintf(" %d", *j.Result.ExitCode)
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", j.ID, j.State, ending, j.Image, j.Attempt, j.AcceptedAt.Local().Format(time.DateTime))
			}
			if r.Next != "" {
				defer say("more with --before %s", r.Next)
			}
			return w.Flush()
		})
	}
	return c
}

func logsCommand() *cobra.Command {
	c := &cobra.Command{Use: "logs JOB", Short: "Print a job's output, from its first byte", Args: cobra.ExactArgs(1)}
	flags := addClientFlags(c)
	follow := c.Flags().BoolP("follow", "f", false, "go on until the job ends")
	attempt := c.Flags().Int("attempt", 0, "this attempt's output; 0 means all")
	events := c.Flags().Bool("events", false, "print the events themselves, one JSON object a line")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		j, err := cl.Get(c.Context(), args[0])
		if err != nil {
			return err
		}
		ctx := c.Context()
		if !*follow && !j.State.Terminal() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, time.Second) // what is there by then
			defer cancel()
		}
		s := &session{c: cl, job: j.ID, out: c.OutOrStdout(), err: c.ErrOrStderr()}
		for e, err := range cl.Follow(ctx, j.ID, client.Position{}) {
			if err != nil {
				if ctx.Err() != nil && c.Context().Err() == nil {
					return nil
				}
				return err
			}
			if *attempt != 0 && e.Attempt != *attempt {
				continue
			}
			if *events {
				b, err := json.Marshal(e)
				if err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "%s\n", b)
				continue
			}
			s.print(e)
		}
		return nil
	}
	return c
}

func cancelCommand() *cobra.Command {
	c := &cobra.Command{Use: "cancel JOB…", Short: "Ask for the end of jobs", Args: cobra.MinimumNArgs(1)}
	flags := addClientFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		var errs []error
		for _, id := range args {
			state, err := cl.Cancel(c.Context(), id)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", id, err))
				continue
			}
			if state.Terminal() {
				say("%s had ended already", id)
			}
		}
		return errors.Join(errs...)
	}
	return c
}
