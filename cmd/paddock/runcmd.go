package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
)

func runCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "run [flags] FILE [ARG…] | run [flags] -- CMD [ARG…]", Short: "Run a program in a machine, with its output here",
		Long: "Runs a source file (its language is told by its extension: .py, .sh, .bash) or a command in a machine of its own.\n" +
			"Standard input is passed through. The exit code is the program's; for limits and the like one stands that docs/cli.md lists.\n" +
			"Ctrl-C cancels the job; a second one leaves at once.",
		Example: "  paddock run hello.py\n  paddock run --image base -- sh -c 'uname -a'\n  paddock run --file data.csv:data.csv --artifact 'out/*' job.py",
		Args:    arguments(1, -1),
	}
	c.Flags().SetInterspersed(false)
	o := &runFlags{clientFlags: addClientFlags(c)}
	o.output = addChoice(c, "output", "o", "text", "text shows the program's output, json and yaml the job's record at its end", "text", "json", "yaml")
	c.Flags().StringVar(&o.image, "image", "", "image to run in; a file's language has one of its own")
	complete(c, "image", images.Recipes()...)
	c.Flags().StringArrayVar(&o.files, "file", nil, "HOST:GUEST, a file to put into the machine (may be repeated)")
	c.Flags().StringArrayVar(&o.artifacts, "artifact", nil, "path or pattern to bring out, into --artifact-dir (may be repeated)")
	c.Flags().StringVar(&o.artifactDir, "artifact-dir", ".", "where artifacts go")
	c.Flags().StringArrayVarP(&o.env, "env", "e", nil, "NAME=VALUE (may be repeated)")
	o.user = addChoice(c, "user", "", "sandbox", "who the program runs as in the machine", "sandbox", "root")
	c.Flags().DurationVar(&o.wall, "time", 0, "wall time limit (60s)")
	c.Flags().DurationVar(&o.cpu, "cpu-time", 0, "cpu time limit (as --time)")
	c.Flags().Int64Var(&o.memoryMiB, "memory", 0, "memory limit in MiB (128)")
	c.Flags().Int64Var(&o.pids, "pids", 0, "processes and threads at once (128)")
	o.network = addChoice(c, "network", "", "none", "what the machine may reach; --allow makes it an allowlist", "none", "internet", "allowlist")
	c.Flags().StringSliceVar(&o.allow, "allow", nil, "CIDRs, addresses and domains that it may reach, and nothing else (may be repeated)")
	c.Flags().IntSliceVar(&o.ports, "port", nil, "TCP port of the machine to be reached on the worker's host while the program runs (may be repeated)")
	o.submit = addSubmitting(c)
	c.RunE = func(c *cobra.Command, args []string) error { return o.run(c, args, c.ArgsLenAtDash() == 0) }
	return c
}

// runFlags are the flags of `run`.
type runFlags struct {
	clientFlags
	image, artifactDir    string
	files, artifacts, env []string
	user                  *string
	wall, cpu             time.Duration
	memoryMiB, pids       int64
	network               *string
	allow                 []string
	ports                 []int
	output                *string
	put                   []inputFile
	submit                *submitting
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
	if len(o.artifacts) > 0 {
		if err := os.MkdirAll(o.artifactDir, 0o755); err != nil {
			return fmt.Errorf("--artifact-dir: %w", err)
		}
	}
	if err := o.putFiles(c.Context(), cl, spec); err != nil {
		return err
	}
	stdin, err := stdinOf(c.InOrStdin(), spec)
	if err != nil {
		return err
	}
	s := &session{c: cl, in: stdin, out: c.OutOrStdout(), err: c.ErrOrStderr(), format: *o.output, artifacts: o.artifactDir, submit: o.submit}
	return s.run(c.Context(), spec)
}

// spec is the job of the command line, but for its files.
func (o *runFlags) spec(args []string, isCommand bool) (*jobs.Spec, error) {
	for i, a := range args {
		if !utf8.ValidString(a) {
			return nil, fmt.Errorf("argument %d is not valid UTF-8; pass it in a file or by standard input", i+1)
		}
	}
	if args[0] == "" {
		return nil, errors.New("the first argument is empty: want a source file, or a command after --")
	}
	if o.memoryMiB != o.memoryMiB<<20>>20 {
		return nil, fmt.Errorf("--memory %d: that many MiB are no number of bytes", o.memoryMiB)
	}
	s := &jobs.Spec{Image: ownImage(o.image, *o.tenant), Limits: jobs.Limits{
		WallMS: o.wall.Milliseconds(), CPUMS: o.cpu.Milliseconds(), MemoryBytes: o.memoryMiB << 20, PIDs: o.pids,
	}}
	s.Network = jobs.Network{Allow: o.allow, Ports: o.ports}
	if s.Network.Policy = *o.network; len(o.allow) > 0 && *o.network == jobs.NetworkNone {
		s.Network.Policy = jobs.NetworkAllowlist
	}
	for name, d := range map[string]time.Duration{"--time": o.wall, "--cpu-time": o.cpu} {
		if d != 0 && d < time.Millisecond {
			return nil, fmt.Errorf("%s %s: want at least 1ms", name, d)
		}
	}
	env := map[string]string{}
	for _, e := range o.env {
		k, v, ok := strings.Cut(e, "=")
		if !ok {
			return nil, fmt.Errorf("--env %s: want NAME=VALUE", e)
		}
		env[k] = v
	}
	step := jobs.Step{User: *o.user, Env: env}
	if isCommand {
		if s.Image == "" {
			s.Image = "base"
		}
		step.Cmd, step.Args = args[0], args[1:]
	} else if err := o.source(s, &step, args); err != nil {
		return nil, err
	}
	s.Steps = []jobs.Step{step}
	for _, a := range o.artifacts {
		s.Artifacts = append(s.Artifacts, jobs.Artifact{Path: a})
	}
	return s, nil
}

// source makes the step run a source file, which goes in as any file does: it may be large, and need not be UTF-8.
func (o *runFlags) source(s *jobs.Spec, step *jobs.Step, args []string) error {
	name := args[0]
	language, known := jobs.LanguageOf(name)
	st, err := os.Stat(name)
	switch {
	case err != nil && known:
		return err
	case err != nil:
		return fmt.Errorf("%w; a command of the machine is given after --: paddock run -- %s", err, strings.Join(args, " "))
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s: not a regular file", name)
	case !known:
		return fmt.Errorf("%s: no language has this extension (known are %s); run it as a command: paddock run --file %s:prog -- ./prog",
			name, strings.Join(jobs.Languages(), ", "), name)
	}
	x := (&jobs.Spec{Language: language, Image: o.image, Args: args[1:]}).Expand()
	s.Image, step.Cmd, step.Args = x.Image, x.Steps[0].Cmd, x.Steps[0].Args
	o.put = append(o.put, inputFile{host: name, guest: x.Files[0].Path, mode: "0644"})
	return nil
}

// inputFile is a file of this host on its way into the machine.
type inputFile struct {
	host, guest string
	mode        string // octal; empty takes the file's own
}

// putFiles puts the source and the files of --file into the spec: inline as long as they fit, as objects otherwise.
func (o *runFlags) putFiles(ctx context.Context, cl *client.Client, spec *jobs.Spec) error {
	for _, arg := range o.files {
		host, guest, ok := strings.Cut(arg, ":")
		if !ok {
			guest = filepath.Base(host)
		}
		o.put = append(o.put, inputFile{host: host, guest: guest})
	}
	inline := 0
	for _, f := range o.put {
		in, err := putFile(ctx, cl, f, jobs.MaxInlineBytes-inline)
		if err != nil {
			return err
		}
		inline += len(in.Base64)
		spec.Files = append(spec.Files, in)
	}
	return nil
}

// putFile gives one file, with its content where that has at most room bytes.
func putFile(ctx context.Context, cl *client.Client, p inputFile, room int) (in jobs.File, err error) {
	f, err := os.Open(p.host)
	if err != nil {
		return in, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return in, err
	}
	if !st.Mode().IsRegular() {
		return in, fmt.Errorf("--file %s: not a regular file", p.host)
	}
	if in.Path, in.Mode = p.guest, p.mode; in.Mode == "" {
		in.Mode = fmt.Sprintf("%04o", st.Mode().Perm())
	}
	if st.Size() <= int64(room) {
		if in.Base64, err = io.ReadAll(io.LimitReader(f, int64(room)+1)); err != nil {
			return in, err
		}
		if len(in.Base64) <= room {
			return in, nil
		}
		in.Base64 = nil // it has grown meanwhile
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return in, err
		}
	}
	ref, err := cl.PutObject(ctx, f)
	if err != nil {
		return in, fmt.Errorf("--file %s: %w", p.host, err)
	}
	in.Object = &ref
	return in, nil
}

// maxTextStdin is up to where a file on standard input becomes part of the job.
const maxTextStdin = 64 << 10

// stdinOf decides how standard input reaches the program: not at all where it is empty, as a part of the job where it is a small file of
// text, else as a stream. What has been streamed cannot be given to a second attempt, so that there is none.
func stdinOf(in io.Reader, spec *jobs.Spec) (io.Reader, error) {
	if f, ok := in.(*os.File); ok {
		st, err := f.Stat()
		if err != nil || st.Mode()&os.ModeCharDevice != 0 && !term.IsTerminal(int(f.Fd())) {
			return nil, nil //nolint:nilerr // closed, or /dev/null: no input
		}
		if st.Mode().IsRegular() {
			head, err := io.ReadAll(io.LimitReader(f, maxTextStdin+1))
			if err != nil {
				return nil, fmt.Errorf("standard input: %w", err)
			}
			if len(head) <= maxTextStdin && utf8.Valid(head) && bytes.IndexByte(head, 0) < 0 && inlineBytes(spec)+len(head) <= jobs.MaxInlineBytes {
				spec.Steps[0].Stdin = string(head)
				return nil, nil
			}
			in = io.MultiReader(bytes.NewReader(head), f)
		}
	}
	spec.StdinStream, spec.InfraRetries = true, new(int)
	return in, nil
}

// inlineBytes counts what the spec carries already.
func inlineBytes(spec *jobs.Spec) (n int) {
	for _, f := range spec.Files {
		n += len(f.Text) + len(f.Base64)
	}
	return n
}
