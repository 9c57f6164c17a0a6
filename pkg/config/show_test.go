package config_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/spf13/cobra"
	"pgregory.net/rapid"
)

const defaultFile = `# Name of this node
# DAMSELFLY_NAME --name
name: me

# The registry face
proxy:
  # Address that container runtimes pull from
  # DAMSELFLY_PROXY_LISTEN --proxy-listen
  listen: 127.0.0.1:65001
  # Longest wait for the first byte
  # DAMSELFLY_PROXY_TIMEOUT --proxy-timeout
  timeout: 1m
  # Networks that may pull
  # DAMSELFLY_PROXY_ALLOW --proxy-allow
  allow: []
  # Names for this proxy
  # DAMSELFLY_PROXY_TAGS --proxy-tags
  tags: [a, b]

# The store
disk:
  # Where blobs are kept
  # DAMSELFLY_DISK_DIR --disk-dir
  dir: /var/lib/damselfly
  # Most bytes to keep. 0 means no limit.
  # DAMSELFLY_DISK_MAX_BYTES --disk-max-bytes
  maxBytes: 10GiB
  # Check cold blobs
  # DAMSELFLY_DISK_SCRUB --disk-scrub
  scrub: false
  # Part of the disk to use
  # DAMSELFLY_DISK_SHARE --disk-share
  share: 0.8
  # How many readers at once
  # DAMSELFLY_DISK_READERS --disk-readers
  readers: 4

upstream:
  # Registries that need their own settings
  hosts: []
  # - # Registry host, such as registry.example.com
  #   name: ""
  #   # URL to read from
  #   endpoint: ""
  #   # Only for tests
  #   password: ""
  #   # Share of reads
  #   weight: 0

# Secret to join with
# DAMSELFLY_TOKEN
token: ""

# A number that may be negative
# DAMSELFLY_OFFSET --offset
offset: 0
`

func TestDefaultsFile(t *testing.T) {
	var out bytes.Buffer
	if err := config.WriteDefaults(&out, defaults()); err != nil {
		t.Fatal(err)
	}
	if out.String() != defaultFile {
		t.Errorf("got:\n%s", out.String())
	}
	uncommented := strings.NewReplacer(" []\n  # - ", "\n  - ", "\n  #   ", "\n    ", `name: ""`, "name: x").Replace(defaultFile)
	c := defaults()
	if _, err := config.Load(c, config.Options{File: write(t, uncommented)}); err != nil {
		t.Errorf("the example of a list element is not accepted: %v\n%s", err, uncommented)
	}
	if len(c.Upstream.Hosts) != 1 || c.Upstream.Hosts[0].Name != "x" {
		t.Errorf("the example gives %+v", c.Upstream.Hosts)
	}
}

// What is printed reads back as the same configuration, whatever is in it.
func TestPrintedFilesReadBack(t *testing.T) {
	name := filepath.Join(t.TempDir(), "node.yaml")
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.SampledFrom([]string{"", "null", "~", "yes", "true", "0x10", "1e3", "-", "- a", "a: b", "#", "a #b", "[", "*a",
			"'", `"`, "\n", "a\nb", "\t", " ", "é", "\u2028", "|", "---", "10.0", "<&>", ":", "a:", "@", "%", "!x", `\`}), rapid.StringN(0, 12, -1))
		c := defaults()
		c.Common.Name = text.Draw(t, "name")
		c.Proxy.Tags = rapid.SliceOfN(text, 0, 3).Draw(t, "tags")
		c.Disk.MaxBytes = config.Bytes(rapid.Int64Range(0, 1<<50).Draw(t, "bytes"))
		c.Proxy.Timeout = config.Duration(rapid.Int64().Draw(t, "duration"))
		c.Offset = rapid.Int().Draw(t, "offset")
		c.Disk.Share = rapid.Float64Range(0, 1).Draw(t, "share")
		for range rapid.IntRange(0, 2).Draw(t, "hosts") {
			c.Upstream.Hosts = append(c.Upstream.Hosts, host{Name: "h" + text.Draw(t, "host"), Weight: rapid.Int().Draw(t, "weight")})
		}
		var commented bytes.Buffer
		if err := config.WriteDefaults(&commented, c); err != nil {
			t.Fatal(err)
		}
		loaded := load(t, name, commented.String(), c)
		var bare bytes.Buffer
		if err := loaded.WriteYAML(&bare); err != nil {
			t.Fatal(err)
		}
		load(t, name, bare.String(), c)
	})
}

// load reads text from the file name and checks that it gives want.
func load(t *rapid.T, name, text string, want *node) *config.Loaded {
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := &node{hidden: 1}
	loaded, err := config.Load(got, config.Options{File: name})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(got.Proxy.Allow) == 0 {
		got.Proxy.Allow = nil
	}
	if len(got.Proxy.Tags) == 0 && len(want.Proxy.Tags) == 0 {
		got.Proxy.Tags = want.Proxy.Tags
	}
	if len(got.Upstream.Hosts) == 0 {
		got.Upstream.Hosts = nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v\n%s", got, want, text)
	}
	return loaded
}

func TestShowHidesSecrets(t *testing.T) {
	c := defaults()
	loaded, err := config.Load(c, config.Options{
		File: write(t, "upstream:\n  hosts: [{name: a, password: hunter2}]\n"), Env: []string{"DAMSELFLY_TOKEN=hunter2"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.Token.Reveal() != secret {
		t.Errorf("the token is %q", c.Token.Reveal())
	}
	var out bytes.Buffer
	if err := loaded.WriteOrigins(&out); err != nil {
		t.Fatal(err)
	}
	if err := loaded.WriteYAML(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), secret) || strings.Count(out.String(), "[redacted]") != 4 {
		t.Errorf("got %s", out.String())
	}
}

func TestUndocumented(t *testing.T) {
	for _, test := range []struct {
		dst  any
		want []string
	}{
		{defaults(), nil},
		{&struct {
			Log config.Log
			Ops config.OpsConfig
		}{}, nil},
		{&struct {
			A int `doc:"x"`
			B struct{ C, D int }
			E []struct{ F int }
		}{}, []string{"b.c", "b.d", "e", "e[].f"}},
	} {
		got, err := config.Undocumented(test.dst)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("got %q, %v, want %q", got, err, test.want)
		}
	}
}

// run executes args on a program that has the config command.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program := &cobra.Command{Use: "node", SilenceErrors: true, SilenceUsage: true}
	file := program.PersistentFlags().String("config", "", "")
	if err := config.Bind(program.PersistentFlags(), defaults()); err != nil {
		t.Fatal(err)
	}
	program.AddCommand(config.Command(func() any { return defaults() }, func() config.Options {
		return config.Options{File: *file, Flags: program.PersistentFlags(), Env: []string{"DAMSELFLY_NAME=env", "DAMSELFLY_NAMES=x"}}
	}))
	var out bytes.Buffer
	program.SetOut(&out)
	program.SetErr(&out)
	program.SetArgs(args)
	err := program.Execute()
	return out.String(), err
}

func TestConfigCommand(t *testing.T) {
	file := write(t, "offset: 5\n")
	for _, test := range []struct {
		args string
		want []string
	}{
		{"config show --origin --disk-dir /x --config " + file, []string{
			"warning: variable DAMSELFLY_NAMES is ignored", "SETTING", "ORIGIN", "flag --disk-dir", "file " + file + ":1", "env DAMSELFLY_NAME", "default"}},
		{"config show", []string{"name: env\n", "disk:\n  dir: /var/lib/damselfly\n", "  hosts: []\n"}},
		{"config validate --config " + file, []string{"the configuration is valid (" + file + ")"}},
		{"config validate", []string{"the configuration is valid (no file)"}},
		{"config defaults", []string{defaultFile}},
		{"config", []string{"Settings come from flags, else from environment"}},
	} {
		out, err := run(t, strings.Fields(test.args)...)
		if err != nil {
			t.Errorf("%s: %v", test.args, err)
		}
		for _, want := range test.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in:\n%s", test.args, want, out)
			}
		}
	}
	for _, args := range []string{"config validate --disk-share 2", "config show --disk-share 2"} {
		if _, err := run(t, strings.Fields(args)...); err == nil || err.Error() != "disk: share must be from 0 to 1 (share is set by flag --disk-share)" {
			t.Errorf("%s: got %v", args, err)
		}
	}
}

func FuzzLoadYAML(f *testing.F) {
	for _, seed := range []string{defaultFile, "proxy:\n  listen: [a\n", "a: &a [*a]", "? b\n: c", "<<: {}", "- - -", "!!map {}", "\"\\ud800\"", "name: |\n  x",
		"upstream: {hosts: [{name: a}, ~, 3]}", "proxy:\n\tx", "---\n...\n---\nname: b", "%YAML 1.2\n---\nname: a", "1: 2", "~: a", "[a]: b", "{", "'", "name: !x y"} {
		f.Add([]byte(seed))
	}
	name := filepath.Join(f.TempDir(), "node.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c := defaults()
		loaded, err := config.Load(c, config.Options{File: name})
		if err != nil {
			if loaded != nil || !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "share") {
				t.Fatalf("%v with error %v", loaded, err)
			}
			return
		}
		var out bytes.Buffer
		if err := loaded.WriteYAML(&out); err != nil {
			t.Fatal(err)
		}
		if _, err := config.Load(&node{hidden: 1}, config.Options{File: write(t, out.String())}); err != nil {
			t.Fatalf("%v: printed as\n%s\nread from\n%s", err, out.String(), data)
		}
	})
}
