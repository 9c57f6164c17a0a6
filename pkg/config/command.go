package config

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Command returns the command "config", with the sub-commands show, validate and
// defaults. A call of defaults returns a pointer to a new struct that holds the
// defaults; options says, once the flags are parsed, where to load from.
func Command(defaults func() any, options func() Options) *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Show, check and explain the configuration",
		Long: "Settings come from flags, else from environment variables, else from the file, else from the defaults.\n" +
			"The environment variable and the flag of each setting stand in the output of `config defaults`.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(showCommand(defaults, options), validateCommand(defaults, options), defaultsCommand(defaults))
	return c
}

// loadAndWarn is Load, with what was ignored on standard error.
func loadAndWarn(c *cobra.Command, dst any, o Options) (*Loaded, error) {
	loaded, err := Load(dst, o)
	if err != nil {
		return nil, err
	}
	for _, warning := range loaded.Warnings {
		fmt.Fprintln(c.ErrOrStderr(), "warning: "+warning)
	}
	return loaded, nil
}

func showCommand(defaults func() any, options func() Options) *cobra.Command {
	origins := false
	c := &cobra.Command{
		Use:   "show",
		Short: "Print the configuration that is in force",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			loaded, err := loadAndWarn(c, defaults(), options())
			if err != nil {
				return err
			}
			if origins {
				return loaded.WriteOrigins(c.OutOrStdout())
			}
			return loaded.WriteYAML(c.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&origins, "origin", false, "tell where each value came from")
	return c
}

// hinting is a configuration that knows what about itself surprises people.
type hinting interface {
	Hints() []string
}

func validateCommand(defaults func() any, options func() Options) *cobra.Command {
	return &cobra.Command{
		Use:   "validate",
		Short: "Check the configuration, and that the files are there that it names; start nothing",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			into := defaults()
			loaded, err := loadAndWarn(c, into, options())
			if err != nil {
				return err
			}
			if h, ok := into.(hinting); ok {
				for _, hint := range h.Hints() {
					fmt.Fprintln(c.ErrOrStderr(), "hint: "+hint)
				}
			}
			warnings, err := loaded.CheckFiles()
			for _, warning := range warnings {
				fmt.Fprintln(c.ErrOrStderr(), "warning: "+warning)
			}
			if err != nil {
				return err
			}
			file := loaded.File
			if file == "" {
				file = "no file"
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "the configuration is valid (%s)\n", file)
			return err
		},
	}
}

func defaultsCommand(defaults func() any) *cobra.Command {
	return &cobra.Command{
		Use:   "defaults",
		Short: "Print a complete configuration file with every setting explained",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return WriteDefaults(c.OutOrStdout(), defaults()) },
	}
}
