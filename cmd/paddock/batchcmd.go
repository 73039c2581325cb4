package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

func batchCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "batch", Short: "Submit many jobs at once, and see how far they are",
		Long: "A batch is up to 10,000 jobs that come in with one call: a file with one spec (JSON) on each line. --defaults names a spec whose fields are\n" +
			"those of every job that does not give them itself.",
	}
	c.AddCommand(batchSubmit(), batchGet(), batchLs(), batchCancel())
	return c
}

func batchSubmit() *cobra.Command {
	c := &cobra.Command{
		Use: "submit -f FILE", Short: "Submit a file of specs, one a line, and print the batch's id", Args: arguments(0, 0),
		Example: "  paddock batch submit -f jobs.jsonl --defaults common.yaml --wait",
	}
	flags := addClientFlags(c)
	out := outputFlag(c)
	var r jobs.BatchRequest
	how := addSubmitting(c)
	file := c.Flags().StringP("file", "f", "", "the specs' file, - for standard input")
	defaults := c.Flags().String("defaults", "", "a file (JSON or YAML) with what every spec has that does not say otherwise")
	wait := c.Flags().Bool("wait", false, "wait for the end of all; the exit code is 1 where not all ended with 0")
	c.Flags().BoolVar(&r.Atomic, "atomic", false, "take all jobs or none")
	c.Flags().StringVar(&r.IdempotencyKey, "key", "", "idempotency key: the same again is the same batch")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := readBatch(&r, *file, *defaults, c.InOrStdin()); err != nil {
			return err
		}
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		r.IdempotencyKey = how.key(r.IdempotencyKey)
		reply, err := submitted(c.Context(), how, func(ctx context.Context) (jobs.BatchReply, error) { return cl.SubmitBatch(ctx, &r) })
		if err != nil {
			return err
		}
		for _, w := range reply.Warnings {
			say("warning: %s", w)
		}
		refused := 0
		for i, item := range reply.Items {
			if item.Error != nil {
				refused++
				say("line %d: %s", i+1, item.Error)
			}
		}
		if *wait {
			return waitForBatch(c, cl, *out, *reply.Batch, refused)
		}
		err = show(c.OutOrStdout(), *out, reply, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, reply.Batch.ID)
			return err
		})
		if refused > 0 {
			err = errors.Join(err, fmt.Errorf("%d of %d jobs were not taken", refused, len(reply.Items)))
		}
		return err
	}
	return c
}

// readBatch reads a file of specs and the defaults into a request.
func readBatch(r *jobs.BatchRequest, file, defaults string, stdin io.Reader) error {
	if file == "" {
		return errors.New("no specs: give a file with -f FILE, or -f - for standard input")
	}
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	r.Jobs = nil
	for n, line := range bytes.Split(b, []byte("\n")) {
		line = bytes.TrimSpace(line)
		switch {
		case len(line) == 0:
		case !json.Valid(line):
			return fmt.Errorf("line %d is no JSON: each line holds one spec", n+1)
		default:
			r.Jobs = append(r.Jobs, line)
		}
	}
	if defaults == "" {
		return nil
	}
	if r.Defaults, err = os.ReadFile(defaults); err != nil {
		return err
	}
	if !json.Valid(r.Defaults) {
		if r.Defaults, err = fromYAML(r.Defaults); err != nil {
			return fmt.Errorf("%s: %w", defaults, err)
		}
	}
	return nil
}

// batchLooks is how often a batch that is waited for is looked at.
const batchLooks = 500 * time.Millisecond

// waitForBatch waits for the end of all jobs of a batch.
func waitForBatch(c *cobra.Command, cl *client.Client, out string, b jobs.Batch, refused int) error {
	for b.Ended < b.Total {
		select {
		case <-c.Context().Done():
			return context.Cause(c.Context())
		case <-time.After(batchLooks):
		}
		now, err := cl.Batch(c.Context(), b.ID)
		if e, ok := errors.AsType[*jobs.Error](err); ok && e.Code == jobs.CodeUnavailable {
			continue
		} else if err != nil {
			return err
		}
		b = now
	}
	if err := show(c.OutOrStdout(), out, b, func(w io.Writer) error { return printBatches(w, []jobs.Batch{b}) }); err != nil {
		return err
	}
	if b.OK < b.Total || refused > 0 {
		return exitError{1}
	}
	return nil
}

func printBatches(to io.Writer, list []jobs.Batch) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BATCH\tJOBS\tENDED\tOK\tACCEPTED\tALL ENDED")
	for _, b := range list {
		ended := ""
		if !b.EndedAt.IsZero() {
			ended = b.EndedAt.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", b.ID, b.Total, b.Ended, b.OK, b.AcceptedAt.Local().Format(time.DateTime), ended)
	}
	return w.Flush()
}

func batchGet() *cobra.Command {
	c := &cobra.Command{Use: "get BATCH", Short: "Show how far a batch is", Args: arguments(1, 1)}
	flags := addClientFlags(c)
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		b, err := cl.Batch(c.Context(), args[0])
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *out, b, func(w io.Writer) error { return printBatches(w, []jobs.Batch{b}) })
	}
	return c
}

func batchLs() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List batches, newest first", Args: arguments(0, 0)}
	flags := addClientFlags(c)
	out := outputFlag(c)
	var q jobs.BatchQuery
	c.Flags().IntVarP(&q.Limit, "limit", "n", 50, "how many")
	c.Flags().StringVar(&q.Before, "before", "", "go on after this id")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		r, err := cl.Batches(c.Context(), q)
		if err != nil {
			return err
		}
		if r.Next != "" {
			defer say("more with --before %s", r.Next)
		}
		return show(c.OutOrStdout(), *out, r, func(w io.Writer) error { return printBatches(w, r.Batches) })
	}
	return c
}

func batchCancel() *cobra.Command {
	c := &cobra.Command{Use: "cancel BATCH", Short: "Ask for the end of all jobs of a batch", Args: arguments(1, 1)}
	flags := addClientFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		n, err := cl.CancelBatch(c.Context(), args[0])
		if err == nil {
			say("%d jobs had not ended, and are canceled", n)
		}
		return err
	}
	return c
}
