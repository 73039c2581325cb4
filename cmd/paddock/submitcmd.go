package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/paddockvm/paddock/jobs"
)

func submitCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "submit -f FILE", Short: "Submit a job spec (JSON or YAML) and print its id", Args: arguments(0, 0),
		Example: "  paddock submit -f job.yaml\n  echo '{\"language\":\"python\",\"source\":\"print(1)\"}' | paddock submit -f - --wait",
	}
	flags := addClientFlags(c)
	out := outputFlag(c)
	file := c.Flags().StringP("file", "f", "", "the spec's file, - for standard input")
	how := addSubmitting(c)
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
		if *wait {
			s := &session{c: cl, out: c.OutOrStdout(), err: c.ErrOrStderr(), format: *out, submit: how}
			if spec.StdinStream && *file != "-" {
				s.in = c.InOrStdin()
			}
			return s.run(c.Context(), spec)
		}
		spec.IdempotencyKey = how.key(spec.IdempotencyKey)
		r, err := submitted(c.Context(), how, func(ctx context.Context) (jobs.SubmitReply, error) { return cl.Submit(ctx, spec) })
		if err != nil {
			return err
		}
		for _, w := range r.Warnings {
			say("warning: %s", w)
		}
		return show(c.OutOrStdout(), *out, r, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, r.Job.ID)
			return err
		})
	}
	return c
}

// readSpec reads a spec strictly: an unknown field here is a mistake, not a newer client.
func readSpec(file string, stdin io.Reader) (*jobs.Spec, error) {
	if file == "" {
		return nil, errors.New("no spec: give one with -f FILE, or -f - for standard input")
	}
	shown := file
	var b []byte
	var err error
	if file == "-" {
		shown = "standard input"
		b, err = io.ReadAll(io.LimitReader(stdin, jobs.MaxSpecBytes+1))
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, err
	}
	if !json.Valid(b) {
		inJSON, err := fromYAML(b)
		if err == nil {
			b = inJSON
		} else if t := bytes.TrimSpace(b); len(t) > 0 && t[0] != '{' { // else it was meant as JSON, whose faults name other places
			return nil, fmt.Errorf("%s: %w", shown, err)
		}
	}
	spec, _, err := jobs.Decode(b, jobs.Strict)
	return spec, err
}

// fromYAML gives a document as JSON.
func fromYAML(b []byte) ([]byte, error) {
	var n yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&n); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("there is no spec in it")
		}
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("a second document follows after ---; a file holds one spec")
	}
	asText(&n)
	var tree any
	if err := n.Decode(&tree); err != nil {
		return nil, err
	}
	return json.Marshal(tree)
}

// asText makes text of what JSON knows as nothing else: keys that look like numbers, and dates.
func asText(n *yaml.Node) {
	for i, c := range n.Content {
		isKey := n.Kind == yaml.MappingNode && i%2 == 0
		if c.Kind == yaml.ScalarNode && (isKey && c.Tag != "!!merge" || c.Tag == "!!timestamp") {
			c.Tag = "!!str"
		}
		asText(c)
	}
}
