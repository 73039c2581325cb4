// Command paddock-agent is the program inside a machine. As PID 1 it brings a Linux guest up and serves its host; otherwise
// `paddock-agent serve --fd N --work DIR` serves the hostproc driver over the connected socket N, as a plain process.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/paddockvm/paddock/guestagent"
)

func main() {
	if os.Getpid() == 1 && len(os.Args) < 2 {
		fmt.Println("paddock-agent:", guestagent.Init())
		os.Exit(1)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "paddock-agent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "version" {
		fmt.Println(guestagent.Version)
		return nil
	}
	if len(args) == 0 || args[0] != "serve" {
		return errors.New("usage: paddock-agent serve --fd N --work DIR (it is PID 1 in a guest otherwise)")
	}
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	fd := flags.Int("fd", 3, "descriptor of the socket to the host")
	work := flags.String("work", "", "directory of programs and files")
	own := flags.Bool("pid-namespace", false, "this process is the first of its own pid and mount namespaces")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *work == "" {
		return errors.New("serve needs --work")
	}
	if *own {
		if err := guestagent.MountProc(); err != nil {
			return err
		}
	}
	conn := os.NewFile(uintptr(*fd), "host")
	if conn == nil {
		return fmt.Errorf("descriptor %d is not open", *fd)
	}
	err := guestagent.Process(conn, *work)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
