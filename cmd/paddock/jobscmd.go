package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func signalNumber(name string) int { return int(unix.SignalNum(name)) }

// clientFlags are what every command that speaks to a server takes.
type clientFlags struct{ nats, tenant, creds, ca, cert, key *string }

func addClientFlags(c *cobra.Command) clientFlags {
	return clientFlags{
		nats:   c.Flags().String("nats", envOr("PADDOCK_NATS", client.DefaultURL), "NATS server (PADDOCK_NATS)"),
		tenant: c.Flags().String("tenant", envOr("PADDOCK_TENANT", "default"), "whose jobs (PADDOCK_TENANT)"),
		creds:  c.Flags().String("nats-creds", envOr("PADDOCK_NATS_CREDS", ""), "file that lets in there: an NKEY's seed, or a NATS credentials file (PADDOCK_NATS_CREDS)"),
		ca:     c.Flags().String("nats-tls-ca", envOr("PADDOCK_NATS_TLS_CA", ""), "authority that has signed the server's certificate (PADDOCK_NATS_TLS_CA)"),
		cert:   c.Flags().String("nats-tls-cert", envOr("PADDOCK_NATS_TLS_CERT", ""), "certificate to show there (PADDOCK_NATS_TLS_CERT)"),
		key:    c.Flags().String("nats-tls-key", envOr("PADDOCK_NATS_TLS_KEY", ""), "its key (PADDOCK_NATS_TLS_KEY)"),
	}
}

func envOr(name, v string) string {
	if e := os.Getenv(name); e != "" {
		return e
	}
	return v
}

// options are how to connect: as whom, and over what.
func (f clientFlags) options() []client.Option {
	l := []client.Option{client.Tenant(*f.tenant), client.Credentials(*f.creds)}
	if *f.ca != "" {
		l = append(l, client.NATS(nats.RootCAs(*f.ca)))
	}
	if *f.cert != "" {
		l = append(l, client.NATS(nats.ClientCert(*f.cert, *f.key)))
	}
	return l
}

// connect connects, and tells people when the connection is lost and there again, and what they may not do.
func (f clientFlags) connect() (*client.Client, error) {
	at, err := jobs.Servers(*f.nats)
	if err != nil {
		return nil, err
	}
	c, err := client.Connect(*f.nats, append(f.options(), client.NATS(
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { say("%v", err) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				say("lost the connection to %s; trying again", at)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { say("connected again") }),
	))...)
	if _, refused := errors.AsType[*jobs.Error](err); err != nil && !refused {
		err = fmt.Errorf("%w Start it, or say where it is with --nats or PADDOCK_NATS", err)
	}
	return c, err
}

// hint says where ids are from, where one is not known.
func hint(err error) error {
	if e, ok := errors.AsType[*jobs.Error](err); ok && e.Code == jobs.CodeNotFound {
		return fmt.Errorf("%w; `paddock ls` lists the tenant's jobs", err)
	}
	return err
}

func getCommand() *cobra.Command {
	c := &cobra.Command{Use: "get JOB", Short: "Show a job's record and result", Args: arguments(1, 1)}
	flags := addClientFlags(c)
	completeJobs(c, flags, anyState)
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		j, err := cl.Get(c.Context(), args[0])
		if err != nil {
			return hint(err)
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

// completeJobs has shells complete the ids of jobs that want says are meant; without a server, nothing.
func completeJobs(c *cobra.Command, flags clientFlags, want func(jobs.State) bool) {
	c.ValidArgsFunction = func(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		const none = cobra.ShellCompDirectiveNoFileComp
		cl, err := client.Connect(*flags.nats, flags.options()...)
		if err != nil {
			return nil, none
		}
		defer cl.Close()
		r, err := cl.List(c.Context(), jobs.ListRequest{Limit: 20})
		if err != nil {
			return nil, none
		}
		var ids []string
		for _, j := range r.Jobs {
			if !want(j.State) {
				continue
			}
			said := string(j.State)
			if j.Result != nil {
				said += " " + string(j.Result.Ending)
			}
			ids = append(ids, j.ID+"\t"+said+" "+j.Image)
		}
		return ids, none | cobra.ShellCompDirectiveKeepOrder
	}
}

func anyState(jobs.State) bool { return true }

var stateNames = []string{string(jobs.StateQueued), string(jobs.StateLeased), string(jobs.StateRunning), string(jobs.StateEnded), string(jobs.StateDead)}

// stateStyle is a state in the colour of what it means: under way, well, not well.
func stateStyle(w io.Writer, j jobs.Job) string {
	switch {
	case !j.State.Terminal():
		return yellow(w, string(j.State))
	case j.Result != nil && j.Result.Success():
		return green(w, string(j.State))
	}
	return red(w, string(j.State))
}

func lsCommand() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List jobs, newest first", Args: arguments(0, 0)}
	flags := addClientFlags(c)
	out := outputFlag(c)
	limit := c.Flags().IntP("limit", "n", 50, "how many")
	before := c.Flags().String("before", "", "go on after this id")
	states := c.Flags().StringSlice("state", nil, "only these states: "+strings.Join(stateNames, ", "))
	batch := c.Flags().String("batch", "", "only the jobs of this batch")
	complete(c, "state", stateNames...)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *limit < 1 { // 0 would mean the server's own choice
			return fmt.Errorf("--limit %d: want 1 to 1000", *limit)
		}
		if *before != "" {
			if _, err := jobs.ParseID(*before); err != nil {
				return fmt.Errorf("--before %s: want a job's id, as the list before this named it", *before)
			}
		}
		if *batch != "" {
			if _, err := jobs.ParseID(*batch); err != nil {
				return fmt.Errorf("--batch %s: want a batch's id", *batch)
			}
		}
		q := jobs.ListRequest{Limit: *limit, Before: *before, Batch: *batch}
		for _, s := range *states {
			if !slices.Contains(stateNames, s) {
				return fmt.Errorf("--state %s: want %s", s, oneOf(stateNames))
			}
			q.States = append(q.States, jobs.State(s))
		}
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		r, err := cl.List(c.Context(), q)
		if err != nil {
			return err
		}
		if r.Next != "" {
			defer say("more with --before %s", r.Next)
		}
		return show(c.OutOrStdout(), *out, r, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "JOB\t"+bold(to, "STATE")+"\tENDING\tIMAGE\tATTEMPT\tACCEPTED")
			for _, j := range r.Jobs {
				ending := ""
				if j.Result != nil {
					if ending = string(j.Result.Ending); j.Result.ExitCode != nil {
						ending += fmt.Sprintf(" %d", *j.Result.ExitCode)
					}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", j.ID, stateStyle(to, j), ending, j.Image, j.Attempt, j.AcceptedAt.Local().Format(time.DateTime))
			}
			return w.Flush()
		})
	}
	return c
}

func cancelCommand() *cobra.Command {
	c := &cobra.Command{Use: "cancel JOB…", Short: "Ask for the end of jobs", Args: arguments(1, -1),
		Long: "Asks for the end of jobs. A program that runs gets SIGTERM, and SIGKILL if it does not end; `paddock logs -f` waits for that.\n" +
			"A job that has ended already stays as it is, which is no error."}
	flags := addClientFlags(c)
	completeJobs(c, flags, func(s jobs.State) bool { return !s.Terminal() })
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		list := []canceled{}
		var errs []error
		for _, id := range args {
			state, err := cl.Cancel(c.Context(), id)
			if err != nil {
				errs = append(errs, hint(err))
				continue
			}
			list = append(list, canceled{id, state})
		}
		err = show(c.OutOrStdout(), *out, list, func(io.Writer) error {
			for _, j := range list {
				if j.State.Terminal() {
					say("%s had ended already", j.ID)
				}
			}
			return nil
		})
		return errors.Join(append(errs, err)...)
	}
	return c
}

// canceled is what -o json prints of each job: where it stood when the cancel came.
type canceled struct {
	ID    string     `json:"id"`
	State jobs.State `json:"state"`
}
