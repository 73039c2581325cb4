// Command paddock runs other people's code in throw-away virtual machines: it is the server (up, dispatcher, worker), the client (run,
// submit, get, ls, logs, cancel) and the image builder. This file is the command tree; wire.go is where concrete types meet.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	_ "time/tzdata" // schedules' time zones, on hosts without them

	"github.com/spf13/cobra"
)

var version = "dev"

func main() {
	os.Exit(run(os.Args[1:]))
}

// exitError carries a program's exit code, or one of our own, through cobra. Its message has been printed.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func run(args []string) int {
	root := command()
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	complain(err)
	return exitFailure
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "paddock",
		Short: "Run other people's code in throw-away virtual machines",
		Long: "Paddock runs jobs in virtual machines that are cloned from warm templates, used once, and destroyed.\n\n" +
			"Start with `paddock up`, then `paddock run FILE` in another terminal. `paddock doctor` says what this host can do.",
		SilenceErrors: true, SilenceUsage: true, Version: version,
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(&cobra.Group{ID: "client", Title: "Jobs:"}, &cobra.Group{ID: "server", Title: "Servers:"}, &cobra.Group{ID: "host", Title: "This host:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("client", runCommand(), submitCommand(), getCommand(), lsCommand(), logsCommand(), portsCommand(), cancelCommand(), resizeCommand(), batchCommand(), scheduleCommand(), dlqCommand(), webhookCommand())
	add("server", upCommand(), dispatcherCommand(), workerCommand(), credentialCommand(), fleetCommand(), ledgerCommand())
	add("host", imageCommand(), snapshotCommand(), doctorCommand(), benchCommand())
	root.AddCommand(versionCommand())
	root.SetVersionTemplate("paddock {{.Version}}\n")
	root.InitDefaultCompletionCmd()
	refuseArguments(root)
	return root
}

// versions is what -o json prints of this binary.
type versions struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func versionCommand() *cobra.Command {
	c := &cobra.Command{Use: "version", Short: "Print the version", Args: arguments(0, 0)}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		v := versions{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
		return show(c.OutOrStdout(), *out, v, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "paddock %s %s %s/%s\n", v.Version, v.Go, v.OS, v.Arch)
			return err
		})
	}
	return c
}
