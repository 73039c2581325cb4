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
)

func imageCommand() *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Build and look after images"}
	dir := c.PersistentFlags().String("image-dir", envOr("PADDOCK_IMAGE_DIR", filepath.Join(defaultStateDir(), "images")), "image store (PADDOCK_IMAGE_DIR)")
	c.AddCommand(imageBuild(dir), imageLs(dir), imageInspect(dir), imageVerify(dir), imageRm(dir))
	return c
}

func imageBuild(dir *string) *cobra.Command {
	c := &cobra.Command{
		Use: "build NAME|RECIPE.yaml…", Short: "Build images from shipped recipes or recipe files", Args: cobra.MinimumNArgs(1),
		Long: "Builds images. Shipped recipes: " + strings.Join(images.Recipes(), ", ") + ". What has not changed is not built again.",
	}
	agent := c.Flags().String("agent", "", "the paddock-agent binary (beside this one)")
	c.RunE = func(c *cobra.Command, args []string) error {
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
		for _, arg := range args {
			r, err := recipe(arg)
			if err != nil {
				return err
			}
			img, err := build.Image(c.Context(), store, r, build.Options{Agent: path, Progress: func(stage, detail string) { p.stage("image %s: %s %s", r.Name, stage, detail) }})
			if err != nil {
				return err
			}
			p.done()
			fmt.Fprintf(c.OutOrStdout(), "%s %s\n", img.Name, img.Digest)
		}
		return nil
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
	c := &cobra.Command{Use: "ls", Short: "List images", Args: cobra.NoArgs}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		store, err := openStore(*dir)
		if err != nil {
			return err
		}
		list, err := store.List()
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *out, list, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "IMAGE\tDIGEST\tSIZE\tVCPUS\tMEMORY\tDESCRIPTION")
			for _, i := range list {
				r := i.Resources()
				fmt.Fprintf(w, "%s\t%.12s\t%d MiB\t%d\t%d MiB\t%s\n", i.Name, i.Digest, i.Size()>>20, r.VCPUs, r.MemoryMiB, i.Manifest.Recipe.Description)
			}
			return w.Flush()
		})
	}
	return c
}

func imageInspect(dir *string) *cobra.Command {
	c := &cobra.Command{Use: "inspect NAME", Short: "Show what an image is made of", Args: cobra.ExactArgs(1)}
	out := c.Flags().StringP("output", "o", "yaml", "output format: json or yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		store, err := openStore(*dir)
		if err != nil {
			return err
		}
		img, err := store.Get(args[0])
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *out, img, func(io.Writer) error { return errors.New("want -o json or yaml") })
	}
	return c
}

func imageVerify(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "verify [NAME…]", Short: "Read all of an image and check it against its digests",
		RunE: func(c *cobra.Command, args []string) error {
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
			var errs []error
			for _, name := range args {
				if err := store.Verify(c.Context(), name); err != nil {
					errs = append(errs, fmt.Errorf("image %s: %w; build it anew with `paddock image rm %s` and `paddock image build`", name, err, name))
					continue
				}
				fmt.Fprintf(c.OutOrStdout(), "%s ok\n", name)
			}
			return errors.Join(errs...)
		},
	}
}

func imageRm(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME…", Short: "Remove images, and what only they need", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := openStore(*dir)
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				errs = append(errs, store.Remove(c.Context(), name))
			}
			return errors.Join(errs...)
		},
	}
}
