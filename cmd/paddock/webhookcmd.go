package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/jobs"
)

func webhookCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "webhook", Short: "Have servers of yours told of jobs, and look after what they were told",
		Long: "A webhook is a request that Paddock makes to a URL of yours when something has happened to a job, signed as Standard Webhooks\n" +
			"says. Endpoints are told of all of a tenant's jobs; a job's own callbacks are in its spec. docs/webhooks.md has receivers.",
	}
	c.AddCommand(webhookAdd(), webhookLs(), webhookOne("show ENDPOINT", "Show an endpoint", jobs.WebhookGet),
		webhookOne("rm ENDPOINT", "Remove an endpoint; what it was still to be told fails", jobs.WebhookRemove),
		webhookOne("enable ENDPOINT", "Have an endpoint told again, of what happens from now on", jobs.WebhookEnable),
		webhookOne("disable ENDPOINT", "Have an endpoint told no more; what it was still to be told fails", jobs.WebhookDisable),
		webhookRotate(), webhookSecret(), webhookTest(), webhookDeliveries(), webhookReplay())
	return c
}

// asking gives a command's RunE, which asks something and prints the reply.
func asking(flags clientFlags, out *string, op string, request func(args []string) (any, error), pick func(r jobs.WebhookReply) any, text func(w io.Writer, r jobs.WebhookReply) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		q, err := request(args)
		if err != nil {
			return err
		}
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		r, err := cl.Webhook(c.Context(), op, q)
		if err != nil {
			return webhookHint(err)
		}
		if r.Next != "" {
			defer say("more with --before %s", r.Next)
		}
		return show(c.OutOrStdout(), *out, pick(r), func(w io.Writer) error { return text(w, r) })
	}
}

// webhookHint says where ids are from, where one is not known.
func webhookHint(err error) error {
	e, ok := errors.AsType[*jobs.Error](err)
	switch {
	case !ok || e.Code != jobs.CodeNotFound:
		return err
	case strings.Contains(e.Message, "delivery"):
		return fmt.Errorf("%w; `paddock webhook deliveries` lists those there are", err)
	}
	return fmt.Errorf("%w; `paddock webhook ls` lists those there are", err)
}

func whole(r jobs.WebhookReply) any { return r }

func webhookAdd() *cobra.Command {
	c := &cobra.Command{
		Use: "add URL", Short: "Have a URL told of jobs, and print the secret that signs", Args: arguments(1, 1),
		Long:    "Makes an endpoint. Its secret is printed this once: whoever receives verifies with it.",
		Example: "  paddock webhook add https://example.com/hooks --event job.ended --event job.requeued",
	}
	flags, out := addClientFlags(c), outputFlag(c)
	var q jobs.EndpointRequest
	c.Flags().StringArrayVar(&q.Events, "event", nil, "what to tell of (may be repeated): job.running, job.requeued, job.ended, batch.ended (the last two)")
	c.Flags().StringVar(&q.Description, "description", "", "what it is, for people")
	addChoiceVar(c, &q.Format, "format", jobs.FormatStandard, "what bodies are", jobs.FormatStandard, jobs.FormatCloudEvents)
	c.Flags().StringVar(&q.Secret, "secret", "", "a secret brought from elsewhere, whsec_…")
	complete(c, "event", jobs.HookRunning, jobs.HookRequeued, jobs.HookEnded, jobs.HookBatchEnded)
	c.RunE = asking(flags, out, jobs.WebhookAdd, func(args []string) (any, error) { q.URL = args[0]; return q, nil }, whole, func(w io.Writer, r jobs.WebhookReply) error {
		_, err := fmt.Fprintf(w, "%s %s\n", r.Endpoint.ID, r.Secret)
		return err
	})
	return c
}

// addChoiceVar is addChoice into a variable.
func addChoiceVar(c *cobra.Command, to *string, name, value, usage string, of ...string) {
	*to = value
	c.Flags().Var(choice{to, of}, name, usage+": "+oneOf(of))
	complete(c, name, of...)
}

func webhookLs() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List endpoints", Args: arguments(0, 0)}
	flags, out := addClientFlags(c), outputFlag(c)
	c.RunE = asking(flags, out, jobs.WebhookList, func([]string) (any, error) { return nil, nil }, func(r jobs.WebhookReply) any { return r.Endpoints },
		func(to io.Writer, r jobs.WebhookReply) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ENDPOINT\t"+bold(to, "STATE")+"\tEVENTS\tURL\tDESCRIPTION")
			for _, e := range r.Endpoints {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.ID, endpointState(to, e), strings.Join(e.Events, ","), e.URL, e.Description)
			}
			return w.Flush()
		})
	return c
}

// endpointState is what an endpoint is like, in a word.
func endpointState(w io.Writer, e jobs.Endpoint) string {
	switch {
	case !e.Enabled:
		return red(w, "disabled")
	case !e.FailingSince.IsZero():
		return yellow(w, "failing")
	}
	return green(w, "enabled")
}

// webhookOne is a command about one endpoint, which it prints.
func webhookOne(use, short, op string) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: arguments(1, 1)}
	flags, out := addClientFlags(c), outputFlag(c)
	completeEndpoints(c, flags)
	c.RunE = asking(flags, out, op, func(args []string) (any, error) { return jobs.EndpointID{ID: args[0]}, nil }, func(r jobs.WebhookReply) any { return r.Endpoint },
		func(w io.Writer, r jobs.WebhookReply) error {
			if op == jobs.WebhookGet {
				return printEndpoint(w, r.Endpoint)
			}
			return nil
		})
	return c
}

func printEndpoint(to io.Writer, e *jobs.Endpoint) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	line := func(k, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", k, fmt.Sprintf(format, args...)) }
	at := func(t time.Time) string { return t.Local().Format(time.DateTime) }
	line("id", "%s", e.ID)
	line("url", "%s", e.URL)
	line("events", "%s", strings.Join(e.Events, ", "))
	line("format", "%s", e.Format)
	if e.Description != "" {
		line("description", "%s", e.Description)
	}
	line("created", "%s", at(e.CreatedAt))
	line("state", "%s", endpointState(to, *e))
	if !e.Enabled {
		line("disabled", "%s: %s", at(e.DisabledAt), e.DisabledReason)
	}
	if !e.FailingSince.IsZero() {
		line("failing since", "%s", at(e.FailingSince))
	}
	if e.Circuit == "open" {
		line("waits until", "%s", at(e.RetryAt))
	}
	for _, s := range e.Secrets {
		until := "now"
		if !s.ExpiresAt.IsZero() {
			until = "until " + at(s.ExpiresAt)
		}
		line("secret", "…%s, of %s, signs %s", s.Hint, at(s.CreatedAt), until)
	}
	return w.Flush()
}

// completeEndpoints has shells complete endpoints' ids; without a server, nothing.
func completeEndpoints(c *cobra.Command, flags clientFlags) {
	c.ValidArgsFunction = func(c *cobra.Command, _ []string, _ string) (ids []string, _ cobra.ShellCompDirective) {
		cl, err := flags.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer cl.Close()
		r, _ := cl.Webhook(c.Context(), jobs.WebhookList, nil) // a shell shows no errors
		for _, e := range r.Endpoints {
			ids = append(ids, e.ID+"\t"+e.URL)
		}
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}

func printSecret(w io.Writer, r jobs.WebhookReply) error {
	_, err := fmt.Fprintln(w, r.Secret)
	return err
}

func webhookRotate() *cobra.Command {
	c := &cobra.Command{
		Use: "rotate ENDPOINT|callbacks", Short: "Make a new secret and print it; the old ones sign too for a while", Args: arguments(1, 1),
		Long: "Makes a new secret. Until the grace is over deliveries are signed with the old ones as well, so that receivers can change over\n" +
			"one after the other. --grace 0s is for a secret that has become known.",
	}
	flags, out := addClientFlags(c), outputFlag(c)
	completeEndpoints(c, flags)
	grace := c.Flags().Duration("grace", 24*time.Hour, "how long the old secrets sign too")
	secret := c.Flags().String("secret", "", "a secret brought from elsewhere, whsec_…")
	c.RunE = asking(flags, out, jobs.WebhookRotate, func(args []string) (any, error) {
		ms := grace.Milliseconds()
		return jobs.RotateRequest{ID: args[0], GraceMS: &ms, Secret: *secret}, nil
	}, whole, printSecret)
	return c
}

func webhookSecret() *cobra.Command {
	c := &cobra.Command{Use: "secret", Short: "Print the secret that signs jobs' callbacks", Args: arguments(0, 0)}
	flags, out := addClientFlags(c), outputFlag(c)
	c.RunE = asking(flags, out, jobs.WebhookSecret, func([]string) (any, error) { return nil, nil }, whole, printSecret)
	return c
}

func webhookTest() *cobra.Command {
	c := &cobra.Command{Use: "test ENDPOINT", Short: "Send an endpoint a webhook.test, and print the delivery's id", Args: arguments(1, 1)}
	flags, out := addClientFlags(c), outputFlag(c)
	completeEndpoints(c, flags)
	c.RunE = asking(flags, out, jobs.WebhookTest, func(args []string) (any, error) { return jobs.EndpointID{ID: args[0]}, nil }, func(r jobs.WebhookReply) any { return r.Delivery },
		func(w io.Writer, r jobs.WebhookReply) error {
			_, err := fmt.Fprintln(w, r.Delivery.ID)
			return err
		})
	return c
}

func webhookDeliveries() *cobra.Command {
	c := &cobra.Command{Use: "deliveries [DELIVERY]", Short: "List deliveries, newest first, or show one with its tries", Args: arguments(0, 1)}
	flags, out := addClientFlags(c), outputFlag(c)
	var q jobs.DeliveriesRequest
	c.Flags().IntVarP(&q.Limit, "limit", "n", 50, "how many")
	c.Flags().StringVar(&q.Before, "before", "", "go on after this id")
	c.Flags().StringVar(&q.Endpoint, "endpoint", "", "only this endpoint's, or callbacks")
	c.Flags().StringVar(&q.Job, "job", "", "only what tells of this job")
	states := c.Flags().StringSlice("state", nil, "only these states: pending, delivered, failed")
	complete(c, "state", string(jobs.DeliveryPending), string(jobs.DeliveryDelivered), string(jobs.DeliveryFailed))
	list := asking(flags, out, jobs.WebhookDeliveries, func([]string) (any, error) {
		for _, s := range *states {
			q.States = append(q.States, jobs.DeliveryState(s))
		}
		return q, nil
	}, whole, printDeliveries)
	one := asking(flags, out, jobs.WebhookDelivery, func(args []string) (any, error) { return jobs.DeliveryID{ID: args[0]}, nil }, func(r jobs.WebhookReply) any { return r.Delivery },
		func(w io.Writer, r jobs.WebhookReply) error { return printDelivery(w, r.Delivery) })
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 1 {
			return one(c, args)
		}
		return list(c, args)
	}
	return c
}

// deliveryStyle is a delivery's state in the colour of what it means.
func deliveryStyle(w io.Writer, s jobs.DeliveryState) string {
	switch s {
	case jobs.DeliveryDelivered:
		return green(w, string(s))
	case jobs.DeliveryFailed:
		return red(w, string(s))
	}
	return yellow(w, string(s))
}

func printDeliveries(to io.Writer, r jobs.WebhookReply) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DELIVERY\t"+bold(to, "STATE")+"\tEVENT\tTRIES\tCREATED\tURL\tERROR")
	for _, d := range r.Deliveries {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", d.ID, deliveryStyle(to, d.State), d.Event, d.Attempts, d.CreatedAt.Local().Format(time.DateTime), d.URL, d.Error)
	}
	return w.Flush()
}

func printDelivery(to io.Writer, d *jobs.Delivery) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	line := func(k, format string, args ...any) { fmt.Fprintf(w, "%s\t%s\n", k, fmt.Sprintf(format, args...)) }
	line("id", "%s", d.ID)
	line("url", "%s", d.URL)
	line("event", "%s", d.Event)
	line("state", "%s", deliveryStyle(to, d.State))
	if !d.NextAt.IsZero() {
		line("next try", "%s", d.NextAt.Local().Format(time.DateTime))
	}
	for _, t := range d.Tries {
		said := t.Error
		if said == "" {
			said = fmt.Sprintf("answered %d", t.Status)
		}
		line(fmt.Sprintf("try %d", t.Attempt), "%s, %.0f ms: %s", t.At.Local().Format(time.DateTime), t.DurationMS, said)
	}
	line("body", "%s", d.Body)
	return w.Flush()
}

func webhookReplay() *cobra.Command {
	c := &cobra.Command{
		Use: "replay [DELIVERY]", Short: "Make a delivery again, or all that failed since a time", Args: arguments(0, 1),
		Long:    "Makes deliveries again, each under its own id: receivers know by it what they have had.",
		Example: "  paddock webhook replay --since 24h\n  paddock webhook replay --since 2026-01-02T15:04:05Z --endpoint 01939d1c-7a6b-7c3d-8e4f-0123456789ab",
	}
	flags, out := addClientFlags(c), outputFlag(c)
	since := c.Flags().String("since", "", "all that failed of what happened since this time, or for so long")
	endpoint := c.Flags().String("endpoint", "", "only this endpoint's, or callbacks")
	c.RunE = asking(flags, out, jobs.WebhookReplay, func(args []string) (any, error) {
		q := jobs.RedeliverRequest{Endpoint: *endpoint}
		if len(args) == 1 {
			q.ID = args[0]
		}
		if *since != "" {
			at, err := sinceTime(*since)
			if err != nil {
				return nil, err
			}
			q.Since = at
		}
		return q, nil
	}, whole, func(w io.Writer, r jobs.WebhookReply) error {
		_, err := fmt.Fprintln(w, r.Count)
		return err
	})
	return c
}

// sinceTime reads a time, or how long ago it was.
func sinceTime(text string) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return time.Now().Add(-d).UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, fmt.Errorf("--since %s: want a time like 2026-01-02T15:04:05Z, or how long ago, like 24h", text)
	}
	return at, nil
}
