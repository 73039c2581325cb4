package main

import (
	"bytes"
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
			s := &session{c: cl, out: c.OutOrStdout(), err: c.ErrOrStderr(), format: *out}
			if spec.StdinStream && *file != "-" {
				s.in = c.InOrStdin()
			}
			return s.run(c.Context(), spec)
		}
		r, err := cl.Submit(c.Context(), spec)
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
	if t := bytes.TrimSpace(b); len(t) > 0 && t[0] != '{' { // YAML holds JSON, but its faults would name other places
		var tree any
		if err := yaml.Unmarshal(b, &tree); err != nil {
			return nil, fmt.Errorf("%s: %w", shown, err)
		}
		if b, err = json.Marshal(tree); err != nil {
			return nil, fmt.Errorf("%s: %w", shown, err)
		}
	}
	spec, _, err := jobs.Decode(b, jobs.Strict)
	return spec, err
}
