package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/images/build"
	"github.com/paddockvm/paddock/jobs"
)

func imageCommand() *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Build and look after images"}
	dir := c.PersistentFlags().String("image-dir", defaultImageDir(), "image store (PADDOCK_IMAGE_DIR, else images below PADDOCK_STATE_DIR)")
	c.AddCommand(imageBuild(dir), imageLs(dir), imageInspect(dir), imageVerify(dir), imageRm(dir))
	for _, sub := range c.Commands() {
		if sub.Name() == "build" {
			sub.ValidArgs = images.Recipes()
		} else if sub.Name() != "ls" {
			sub.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				return imageNames(*dir), cobra.ShellCompDirectiveNoFileComp
			}
		}
	}
	return c
}

// defaultImageDir is where a server that is told the same finds its images.
func defaultImageDir() string {
	return envOr("PADDOCK_IMAGE_DIR", filepath.Join(envOr("PADDOCK_STATE_DIR", defaultStateDir()), "images"))
}

// imageNames are the images of a store, for shells; none where it cannot be read.
func imageNames(dir string) (names []string) {
	store, err := openStore(dir)
	if err != nil {
		return nil
	}
	list, _ := store.List() // a shell shows no errors
	for _, i := range list {
		names = append(names, i.Name)
	}
	return names
}

// imageRecord is what -o json and yaml print of an image.
type imageRecord struct {
	Name        string         `json:"name"`
	Digest      string         `json:"digest"`
	Description string         `json:"description,omitempty"`
	SizeBytes   int64          `json:"size_bytes"`
	Resources   jobs.Resources `json:"resources"`
	// Manifest and Files, the parts' places on this host, are what inspect adds.
	Manifest *images.Manifest  `json:"manifest,omitempty"`
	Files    map[string]string `json:"files,omitempty"`
}

func recordOf(i images.Image) imageRecord {
	return imageRecord{Name: i.Name, Digest: i.Digest, Description: i.Manifest.Recipe.Description, SizeBytes: i.Size(), Resources: i.Resources()}
}

func imageBuild(dir *string) *cobra.Command {
	c := &cobra.Command{
		Use: "build NAME|RECIPE.yaml…", Short: "Build images from shipped recipes or recipe files", Args: arguments(1, -1),
		Long: "Builds images. Shipped recipes: " + strings.Join(images.Recipes(), ", ") + ". What has not changed is not built again.",
	}
	agent := c.Flags().String("agent", "", "the paddock-agent binary (beside this one)")
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var recipes []images.Recipe
		for _, arg := range args { // all of them before the first is built
			r, err := recipe(arg)
			if err != nil {
				return err
			}
			recipes = append(recipes, r)
		}
		store, err := openStore(*dir)
		if err != nil {
			return err
		}
		path, err := agentPath(*agent)
		if err != nil {
			return err
		}
		p := newProgress()
		defer p.done()
		built := []imageRecord{}
		for _, r := range recipes {
			img, err := build.Image(c.Context(), store, r, build.Options{Agent: path, Progress: func(stage, detail string) { p.stage("image %s: %s %s", r.Name, stage, detail) }})
			if err != nil {
				return err
			}
			built = append(built, recordOf(img))
		}
		p.done()
		return show(c.OutOrStdout(), *out, built, func(w io.Writer) error {
			for _, i := range built {
				fmt.Fprintf(w, "%s %s\n", i.Name, i.Digest)
			}
			return nil
		})
	}
	return c
}

// recipe reads a recipe from a file, or gives a shipped one.
func recipe(arg string) (images.Recipe, error) {
	if !strings.ContainsAny(arg, "/.") {
		return images.ShippedRecipe(arg)
	}
	b, err := os.ReadFile(arg)
	if err != nil {
		return images.Recipe{}, err
	}
	r, err := images.ParseRecipe(b)
	if err != nil {
		return r, fmt.Errorf("%s: %w", arg, err)
	}
	return r, nil
}

func imageLs(dir *string) *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List images", Args: arguments(0, 0)}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		store, err := openStore(*dir)
		if err != nil {
			return err
		}
		found, err := store.List()
		if err != nil {
			return err
		}
		list := []imageRecord{}
		for _, i := range found {
			list = append(list, recordOf(i))
		}
		return show(c.OutOrStdout(), *out, list, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tDIGEST\tSIZE\tVCPUS\tMEMORY\tDESCRIPTION")
			for _, i := range list {
				fmt.Fprintf(w, "%s\t%.12s\t%d MiB\t%d\t%d MiB\t%s\n", i.Name, i.Digest, i.SizeBytes>>20, i.Resources.VCPUs, i.Resources.MemoryMiB, i.Description)
			}
			return w.Flush()
		})
	}
	return c
}

func imageInspect(dir *string) *cobra.Command {
	c := &cobra.Command{Use: "inspect NAME", Short: "Show what an image is made of", Args: arguments(1, 1)}
	out := addChoice(c, "output", "o", "yaml", "output format", "json", "yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		store, err := openStore(*dir)
		if err != nil {
			return err
		}
		img, err := store.Get(args[0])
		if err != nil {
			return imageHint(err)
		}
		r := recordOf(img)
		r.Manifest = &img.Manifest
		r.Files = map[string]string{"kernel": img.Kernel, "initrd": img.Initrd, "root": img.Root, "scratch": img.Scratch}
		return show(c.OutOrStdout(), *out, r, nil)
	}
	return c
}

// imageHint says where names are from, where one is not known.
func imageHint(err error) error {
	if errors.Is(err, images.ErrNoImage) {
		return fmt.Errorf("%w; `paddock image ls` lists those there are, `paddock image build` makes one", err)
	}
	return err
}

// verdict is what -o json prints of an image that was looked at or removed.
type verdict struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// each does something to images, all of them whatever becomes of the others, and shows what became of each.
func each(w io.Writer, format, done string, names []string, do func(name string) error) error {
	list := []verdict{}
	var errs []error
	for _, name := range names {
		v := verdict{Name: name, OK: true}
		if err := do(name); err != nil {
			v.OK, v.Error = false, err.Error()
			errs = append(errs, err)
		}
		list = append(list, v)
	}
	err := show(w, format, list, func(w io.Writer) error {
		for _, v := range list {
			if v.OK && done != "" {
				fmt.Fprintf(w, "%s %s\n", v.Name, done)
			}
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

func imageVerify(dir *string) *cobra.Command {
	c := &cobra.Command{Use: "verify [NAME…]", Short: "Read all of an image and check it against its digests"}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		store, err := openStore(*dir)
		if err != nil {
			return err
		}
		if len(args) == 0 {
			list, err := store.List()
			if err != nil {
				return err
			}
			for _, i := range list {
				args = append(args, i.Name)
			}
		}
		return each(c.OutOrStdout(), *out, "ok", args, func(name string) error {
			err := store.Verify(c.Context(), name)
			switch {
			case errors.Is(err, images.ErrNoImage):
				return imageHint(err)
			case err != nil:
				return fmt.Errorf("image %s: %w; build it anew with `paddock image rm %s` and `paddock image build`", name, err, name)
			}
			return nil
		})
	}
	return c
}

func imageRm(dir *string) *cobra.Command {
	c := &cobra.Command{Use: "rm NAME…", Short: "Remove images, and what only they need", Args: arguments(1, -1)}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		store, err := openStore(*dir)
		if err != nil {
			return err
		}
		return each(c.OutOrStdout(), *out, "", args, func(name string) error {
			if _, err := store.Get(name); err != nil {
				return imageHint(err)
			}
			return imageHint(store.Remove(c.Context(), name))
		})
	}
	return c
}
