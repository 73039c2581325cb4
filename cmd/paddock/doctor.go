package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// finding is one line of the doctor.
type finding struct {
	Check  string `json:"check"`
	Status status `json:"status"`
	Detail string `json:"detail"`
	// Advice says what to do, where something can be done.
	Advice string `json:"advice,omitempty"`
}

// status is what a finding means for whoever wants to run jobs here.
type status string

const (
	ok       status = "ok"
	note     status = "note"     // neither good nor bad
	degraded status = "degraded" // it works, with less than there could be
	missing  status = "missing"  // it does not work
)

func (s status) styled(w io.Writer) string {
	switch s {
	case ok:
		return green(w, string(s))
	case degraded:
		return yellow(w, string(s))
	case missing:
		return red(w, string(s))
	}
	return dim(w, string(s))
}

func doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "Say what this host can and cannot do, and what to do about it", Args: arguments(0, 0),
		Long: "Tries what Paddock needs: it boots a machine, starts something in a jail, asks the server. It changes nothing.\n" +
			"Each line is ok, degraded (it works, with less than there could be), missing (it does not work) or a note. An arrow says what to do.\n" +
			"Exits with 1 where something is missing.",
	}
	out := outputFlag(c)
	flags := addClientFlags(c)
	state := c.Flags().String("state-dir", envOr("PADDOCK_STATE_DIR", defaultStateDir()), "the state directory (PADDOCK_STATE_DIR)")
	imageDir := c.Flags().String("image-dir", envOr("PADDOCK_IMAGE_DIR", ""), "image store (PADDOCK_IMAGE_DIR, else images below the state directory)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		e := examination{state: *state, images: *imageDir, nats: *flags.nats, options: flags.options()}
		list := e.run(c.Context())
		if err := show(c.OutOrStdout(), *out, list, func(w io.Writer) error { return printFindings(w, list) }); err != nil {
			return err
		}
		if len(having(list, missing)) > 0 {
			return exitError{1}
		}
		return nil
	}
	return c
}

func printFindings(to io.Writer, list []finding) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, f := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Status.styled(to), f.Check, f.Detail)
		if f.Advice != "" {
			fmt.Fprintf(w, "%s\t\t→ %s\n", dim(to, ""), f.Advice)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(to, "\n"+summary(list))
	return err
}

// summary is the answer in one sentence.
func summary(list []finding) string {
	lacks, less := having(list, missing), having(list, degraded)
	switch {
	case len(lacks) > 0:
		return "This host cannot run jobs in machines yet: " + strings.Join(lacks, ", ") + "."
	case len(less) > 0:
		return "This host can run jobs in machines, with less than there could be: " + strings.Join(less, ", ") + "."
	}
	return "This host can run jobs in machines."
}

// having names the checks of a status.
func having(list []finding, s status) (names []string) {
	for _, f := range list {
		if f.Status == s {
			names = append(names, f.Check)
		}
	}
	return names
}
