package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
)

func snapshotCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "snapshot", Short: "Keep the state of running machines, and look after what is kept",
		Long: "A snapshot is a machine's memory and disk as they were while its job ran. `create` asks the job's worker for one; the other commands\n" +
			"work on this host's store. Jobs run in a snapshot by its image: `paddock run --image snapshot:NAME -- CMD`.",
	}
	local := []*cobra.Command{snapshotLs(), snapshotInspect(), snapshotVerify(), snapshotRm(), snapshotGC(), snapshotStats()}
	c.AddCommand(snapshotCreate())
	c.AddCommand(local...)
	return c
}

func snapshotCreate() *cobra.Command {
	c := &cobra.Command{
		Use: "create JOB", Short: "Keep the state of a running job's machine, while it runs on", Args: arguments(1, 1),
		Example: "  paddock snapshot create 01939d1c-7a6b-7c3d-8e4f-0123456789ab --name warm\n  paddock run --image snapshot:warm -- python3 -c 'print(1)'",
	}
	flags := addClientFlags(c)
	completeJobs(c, flags, func(s jobs.State) bool { return s == jobs.StateLeased || s == jobs.StateRunning })
	out := outputFlag(c)
	var r jobs.SnapshotRequest
	c.Flags().StringVar(&r.Name, "name", "", "its name, by which jobs run in it (its id)")
	c.Flags().StringArrayVar(&r.Tags, "tag", nil, "a tag (may be repeated)")
	c.Flags().StringVar(&r.Parent, "parent", jobs.ParentAuto, "what it is the difference to: auto is the snapshot or template before, none makes it whole, or a snapshot's id")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := flags.connect()
		if err != nil {
			return err
		}
		defer cl.Close()
		s, err := cl.Snapshot(c.Context(), args[0], r)
		if err != nil {
			return hint(err)
		}
		return show(c.OutOrStdout(), *out, s, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s %s\n", s.Image, s.ID)
			return err
		})
	}
	return c
}

// addSnapshots gives the store of snapshots that a command works on.
func addSnapshots(c *cobra.Command) (open func() (*images.Snapshots, error)) {
	dir := c.Flags().String("image-dir", defaultImageDir(), "image store (PADDOCK_IMAGE_DIR, else images below PADDOCK_STATE_DIR)")
	open = func() (*images.Snapshots, error) {
		store, err := openStore(*dir)
		if err != nil {
			return nil, err
		}
		return store.Snapshots()
	}
	c.ValidArgsFunction = func(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
		if n, err := open(); err == nil {
			list, _ := n.List() // a shell shows no errors
			for _, s := range list {
				names = append(names, s.ID+"\t"+s.Image)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	return open
}

func snapshotLs() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List snapshots, children below their parents", Args: arguments(0, 0)}
	open, out := addSnapshots(c), outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		n, err := open()
		if err != nil {
			return err
		}
		found, listErr := n.List()
		list := []jobs.Snapshot{}
		for _, s := range found {
			list = append(list, s.Snapshot)
		}
		return errors.Join(listErr, show(c.OutOrStdout(), *out, list, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SNAPSHOT\tID\tOF\tSTORED\tCREATED\tTAGS")
			tree(list, func(depth int, s jobs.Snapshot) {
				fmt.Fprintf(w, "%s%s\t%s\t%s\t%d KiB\t%s\t%s\n", strings.Repeat("  ", depth), strings.TrimPrefix(s.Image, jobs.SnapshotPrefix), s.ID, s.Of,
					s.StoredBytes>>10, s.CreatedAt.Local().Format(time.DateTime), strings.Join(s.Tags, ","))
			})
			return w.Flush()
		}))
	}
	return c
}

// tree visits snapshots in the order of a tree. One whose parent cannot be read stands by itself.
func tree(list []jobs.Snapshot, visit func(depth int, s jobs.Snapshot)) {
	there := map[string]bool{}
	children := map[string][]jobs.Snapshot{}
	for _, s := range list {
		there[s.ID] = true
	}
	for _, s := range list {
		parent := s.Parent
		if !there[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	var below func(parent string, depth int)
	below = func(parent string, depth int) {
		for _, s := range children[parent] {
			visit(depth, s)
			below(s.ID, depth+1)
		}
	}
	below("", 0)
}

func snapshotInspect() *cobra.Command {
	c := &cobra.Command{Use: "inspect SNAPSHOT", Short: "Show what a snapshot is made of", Args: arguments(1, 1)}
	open, out := addSnapshots(c), addChoice(c, "output", "o", "yaml", "output format", "json", "yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		n, err := open()
		if err != nil {
			return err
		}
		s, err := n.Find(args[0])
		if err != nil {
			return snapshotHint(err)
		}
		line, err := n.Line(s)
		if err != nil {
			return err
		}
		ancestors := []string{}
		for _, a := range line[:len(line)-1] {
			ancestors = append(ancestors, a.ID)
		}
		return show(c.OutOrStdout(), *out, struct {
			images.Snapshot
			Ancestors []string `json:"ancestors"`
		}{s, ancestors}, nil)
	}
	return c
}

// snapshotHint says where names are from, where one is not known.
func snapshotHint(err error) error {
	if errors.Is(err, images.ErrNoSnapshot) {
		return fmt.Errorf("%w; `paddock snapshot ls` lists those there are", err)
	}
	return err
}

func snapshotVerify() *cobra.Command {
	c := &cobra.Command{Use: "verify [SNAPSHOT…]", Short: "Read all that snapshots are made of and check it against its digests"}
	open, out := addSnapshots(c), outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		n, err := open()
		if err != nil {
			return err
		}
		var listErr error
		if len(args) == 0 {
			var list []images.Snapshot
			list, listErr = n.List()
			for _, s := range list {
				args = append(args, s.ID)
			}
		}
		return errors.Join(listErr, each(c.OutOrStdout(), *out, "ok", args, func(ref string) error {
			s, err := n.Find(ref)
			if err != nil {
				return snapshotHint(err)
			}
			return n.Verify(c.Context(), s.ID)
		}))
	}
	return c
}

func snapshotRm() *cobra.Command {
	c := &cobra.Command{
		Use: "rm SNAPSHOT…", Short: "Remove snapshots", Args: arguments(1, -1),
		Long: "Removes snapshots that nobody uses. One to which others are the difference stays, unless --rebase makes those whole first.",
	}
	open, out := addSnapshots(c), outputFlag(c)
	rebase := c.Flags().Bool("rebase", false, "make the snapshot's children whole, so that they need it no more")
	c.RunE = func(c *cobra.Command, args []string) error {
		n, err := open()
		if err != nil {
			return err
		}
		return each(c.OutOrStdout(), *out, "", args, func(ref string) error {
			id := ref
			if _, err := jobs.ParseID(ref); err != nil { // an id may be that of one that cannot be read
				s, err := n.Find(ref)
				if err != nil {
					return snapshotHint(err)
				}
				id = s.ID
			}
			remove := n.Remove
			if *rebase {
				remove = n.RemoveRebased
			}
			err := remove(c.Context(), id)
			if errors.Is(err, images.ErrHasChildren) {
				err = fmt.Errorf("%w; remove them first, or make them whole with --rebase", err)
			}
			return snapshotHint(err)
		})
	}
	return c
}

func snapshotGC() *cobra.Command {
	c := &cobra.Command{
		Use: "gc", Short: "Remove snapshots by a policy, and what crashes and caches have left", Args: arguments(0, 0),
		Long: "Removes the snapshots that the policy does not keep, the oldest first. Those in use stay, and the ancestors of those that stay.\n" +
			"Without a policy only leftovers and cached templates go.",
	}
	open, out := addSnapshots(c), outputFlag(c)
	var p images.Policy
	var maxMiB int64
	c.Flags().IntVar(&p.Keep, "keep", 0, "keep this many of each tenant's, the newest")
	c.Flags().DurationVar(&p.MaxAge, "max-age", 0, "keep those that are younger")
	c.Flags().Int64Var(&maxMiB, "max-mib", 0, "keep as many as take no more than this on the disk, in MiB")
	c.Flags().BoolVar(&p.KeepTagged, "keep-tagged", false, "keep those with a tag, whatever else is said")
	dry := c.Flags().Bool("dry-run", false, "only say which would go")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if p.Keep < 0 || p.MaxAge < 0 || maxMiB < 0 {
			return errors.New("--keep, --max-age and --max-mib: want no less than 0")
		}
		p.MaxBytes = maxMiB << 20
		n, err := open()
		if err != nil {
			return err
		}
		collect := func(ctx context.Context) ([]images.Snapshot, error) { return n.Collect(ctx, p) }
		if *dry {
			collect = func(ctx context.Context) ([]images.Snapshot, error) { return n.Doomed(ctx, p) }
		}
		gone, err := collect(c.Context())
		list := []jobs.Snapshot{}
		for _, s := range gone {
			list = append(list, s.Snapshot)
		}
		return errors.Join(err, show(c.OutOrStdout(), *out, list, func(w io.Writer) error {
			for _, s := range list {
				fmt.Fprintf(w, "%s %s\n", s.Image, s.ID)
			}
			return nil
		}))
	}
	return c
}

func snapshotStats() *cobra.Command {
	c := &cobra.Command{Use: "stats", Short: "Show what snapshots and templates take, and how often one was there", Args: arguments(0, 0)}
	open, out := addSnapshots(c), outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		n, err := open()
		if err != nil {
			return err
		}
		st, err := n.Stats(c.Context())
		return errors.Join(err, show(c.OutOrStdout(), *out, st, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "WHAT\tCOUNT\tAPPARENT\tREAL\tSHARED\tHITS\tMISSES")
			row := func(what string, u images.Usage, hits string) {
				fmt.Fprintf(w, "%s\t%d\t%d KiB\t%d KiB\t%d KiB\t%s\n", what, u.Count, u.ApparentBytes>>10, u.RealBytes>>10, u.SharedBytes>>10, hits)
			}
			for _, i := range st.Images {
				row("image "+i.Image, i.Usage, fmt.Sprintf("%d\t%d", i.Hits, i.Misses))
			}
			row("all snapshots", st.Total, "\t")
			row("parts in common", st.Parts, "\t")
			row("cached templates of snapshots", st.Flattened, "\t")
			row("templates of images", st.Templates, "\t")
			return w.Flush()
		}))
	}
	return c
}

// ownImage completes the image that a person names: a snapshot without a tenant is their own.
func ownImage(image, tenant string) string {
	if name, ok := strings.CutPrefix(image, jobs.SnapshotPrefix); ok && !strings.Contains(name, "/") {
		return jobs.SnapshotImage(tenant, name)
	}
	return image
}
