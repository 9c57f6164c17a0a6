package config_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/spf13/pflag"
)

type proxy struct {
	Listen  string          `yaml:"listen" doc:"Address that container runtimes pull from"`
	Timeout config.Duration `yaml:"timeout" doc:"Longest wait for the first byte"`
	Allow   []netip.Prefix  `yaml:"allow" doc:"Networks that may pull"`
	Tags    []string        `yaml:"tags" doc:"Names for this proxy"`
}

type disk struct {
	Dir      string       `yaml:"dir" doc:"Where blobs are kept"`
	MaxBytes config.Bytes `doc:"Most bytes to keep. 0 means no limit."`
	Scrub    bool         `yaml:"scrub" doc:"Check cold blobs"`
	Share    float64      `yaml:"share" flag:"disk-share" doc:"Part of the disk to use"`
	Readers  uint8        `yaml:"readers" doc:"How many readers at once"`
}

func (d disk) Validate() error {
	if d.Share < 0 || d.Share > 1 {
		return errors.New("share must be from 0 to 1")
	}
	return nil
}

type host struct {
	Name     string          `yaml:"name" doc:"Registry host, such as registry.example.com"`
	Endpoint string          `yaml:"endpoint" doc:"URL to read from"`
	Password config.Redacted `yaml:"password" doc:"Only for tests"`
	Weight   int             `yaml:"weight" flag:"-" doc:"Share of reads"`
}

func (h *host) Validate() error {
	if h.Name == "" {
		return errors.New("name is missing: write the registry's host")
	}
	return nil
}

type upstream struct {
	Hosts []host `yaml:"hosts" doc:"Registries that need their own settings"`
}

type common struct {
	Name string `yaml:"name" doc:"Name of this node"`
}

type node struct {
	Common   common `yaml:",inline"`
	Proxy    proxy  `yaml:"proxy" doc:"The registry face"`
	Disk     disk   `yaml:"disk" doc:"The store"`
	Upstream upstream
	Token    config.Redacted `yaml:"token" doc:"Secret to join with"`
	Offset   int             `yaml:"offset" doc:"A number that may be negative"`
	hidden   int
}

func (n *node) Validate() error {
	if n.Proxy.Listen == n.Disk.Dir {
		return errors.New("proxy.listen and disk.dir are the same")
	}
	return nil
}

func defaults() *node {
	return &node{
		hidden: 1,
		Common: common{Name: "me"},
		Proxy:  proxy{Listen: "127.0.0.1:65001", Timeout: time.Minute, Tags: []string{"a", "b"}},
		Disk:   disk{Dir: "/var/lib/damselfly", MaxBytes: 10 << 30, Share: 0.8, Readers: 4},
	}
}

// write makes a file called node.yaml and returns its path.
func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFileReplacesDefaults(t *testing.T) {
	name := write(t, `
# A comment.
name: "node 7"
proxy:
  listen: :5000
  timeout: 1m30s
  allow: [10.0.0.0/8, "fd00::/8"]
  tags: []
disk:
  maxBytes: 500MB
  scrub: true
  share: 1
  readers: 255
  dir:
upstream:
  hosts:
    - name: docker.io
      endpoint: https://mirror.example.com
      password: hunter2
    - {name: ghcr.io, weight: -3}
token: |-
  dmf1.abc
offset: -12
`)
	got := defaults()
	loaded, err := config.Load(got, config.Options{File: name})
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Common.Name = "node 7"
	want.Proxy = proxy{":5000", 90 * time.Second, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}, []string{}}
	want.Disk = disk{"/var/lib/damselfly", 500_000_000, true, 1, 255}
	want.Upstream.Hosts = []host{{"docker.io", "https://mirror.example.com", "hunter2", 0}, {Name: "ghcr.io", Weight: -3}}
	want.Token, want.Offset = "dmf1.abc", -12
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if loaded.File != name || len(loaded.Warnings) > 0 {
		t.Errorf("loaded %q with warnings %q", loaded.File, loaded.Warnings)
	}
}

func TestFileProblems(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"typing error", "proxy:\n  lisen: x\n", `2:3: unknown key "lisen" in proxy; did you mean "listen"?`},
		{"other spelling", "disk:\n  max_bytes: 1\n", `2:3: unknown key "max_bytes" in disk; did you mean "maxBytes"?`},
		{"inline", "nam: x\n", `1:1: unknown key "nam"; did you mean "name"?`},
		{"wrong section", "proxy:\n  dir: /x\n", `2:3: unknown key "dir" in proxy; did you mean disk.dir?`},
		{"nothing near", "disk: {zzzzzz: 1}\n", `1:8: unknown key "zzzzzz" in disk; known here: dir, maxBytes, scrub, share, readers`},
		{"in a list", "upstream:\n  hosts:\n  - name: a\n    endpont: b\n", `4:5: unknown key "endpont" in upstream.hosts[0]; did you mean "endpoint"?`},
		{"number", "disk:\n  readers: many\n", `2:12: disk.readers: "many" is not a whole number, such as 8`},
		{"too large", "disk:\n  readers: 256\n", `2:12: disk.readers: "256" is out of range: write a whole number from 0 to 255`},
		{"negative", "disk:\n  readers: -1\n", `2:12: disk.readers: "-1" is out of range: write a whole number from 0 to 255`},
		{"not finite", "disk:\n  share: .inf\n", `2:10: disk.share: ".inf" is not a number, such as 0.5 or 10`},
		{"truth", "disk:\n  scrub: yes\n", `2:10: disk.scrub: "yes" is not a truth value: write true or false`},
		{"unit missing", "proxy:\n  timeout: 30\n", `2:12: proxy.timeout: "30" is not a duration: write a number and its unit, such as 500ms, 30s, 1h30m or 7d`},
		{"size", "disk:\n  maxBytes: 10 giraffes\n", `2:13: disk.maxBytes: "10 giraffes" is not a size: write a number of bytes, or a number and a unit such as 10GiB or 500MB`},
		{"item", "proxy:\n  allow:\n  - 10.0.0.0/8\n  - 10.0.0.0/99\n", `4:5: proxy.allow[1]: netip.ParsePrefix("10.0.0.0/99"): prefix length out of range`},
		{"list as text", "proxy:\n  tags: a\n", `2:9: proxy.tags: this is the value "a", but a list belongs here; write [a] for a list of one`},
		{"text as list", "proxy:\n  listen: [a]\n", `2:11: proxy.listen: this is a list, but one value belongs here`},
		{"section as text", "proxy: on\n", `1:8: proxy: this is the value "on", but keys and values belong here; write them below as key: value, indented alike`},
		{"section in list", "proxy:\n  tags:\n  - a: b\n", `3:5: proxy.tags[0]: this is a section of keys, but one value belongs here`},
		{"structs as text", "upstream:\n  hosts: a\n", `2:10: upstream.hosts: this is the value "a", but a list belongs here; write each item on a line of its own that starts with -`},
		{"whole file", "- a\n", `1:1: this is a list, but keys and values belong here; write them below as key: value, indented alike`},
		{"twice", "disk:\n  dir: a\n  dir: b\n", `3:3: mapping key "dir" already defined at [2:3]; keep one of the two`},
		{"alias", "name: &x a\ntoken: *x\n", "1:7: name: anchors, aliases and merge keys are not supported; write the value out\n" +
			"FILE:2:8: token: anchors, aliases and merge keys are not supported; write the value out"},
		{"merge", "proxy:\n  <<: {listen: a}\n", `2:3: proxy: anchors, aliases and merge keys are not supported; write the value out`},
		{"tag", "name: !!str a\n", `1:7: name: tags (!...) are not supported; write the value out`},
		{"syntax", "proxy:\n  listen: [a\n", `2:11: this is not valid YAML: sequence end token ']' not found`},
		{"tab", "proxy:\n\tlisten: a\n", `2:1: this is not valid YAML: a tab stands where only spaces may; indent with spaces`},
		{"documents", "name: a\n---\nname: b\n", `3:1: a second document starts here; keep one and remove the line ---`},
		{"two problems", "nam: a\ndisk:\n  readers: x\n", "1:1: unknown key \"nam\"; did you mean \"name\"?\n" +
			`FILE:3:12: disk.readers: "x" is not a whole number, such as 8`},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := write(t, test.text)
			_, err := config.Load(defaults(), config.Options{File: name})
			want := name + ":" + strings.ReplaceAll(test.want, "FILE", name)
			if err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %v", err, want)
			}
		})
	}
}

// What Validate finds is traced to where the value was set.
func TestValidateTellsWhere(t *testing.T) {
	for _, test := range []struct{ text, env, flag, want string }{
		{text: "name: a\ndisk:\n  share: 2\n", want: "disk: share must be from 0 to 1 (share is set by file FILE:3)"},
		{text: "disk:\n  share: 2\n", env: "DAMSELFLY_DISK_SHARE=3", want: "disk: share must be from 0 to 1 (share is set by env DAMSELFLY_DISK_SHARE)"},
		{env: "DAMSELFLY_DISK_SHARE=3", flag: "--disk-share=4", want: "disk: share must be from 0 to 1 (share is set by flag --disk-share)"},
		{text: "upstream:\n  hosts:\n  - name: a\n  - endpoint: b\n", want: "upstream.hosts[1]: name is missing: write the registry's host (it is set by file FILE:4)"},
		{text: "proxy: {listen: /x}\n", flag: "--disk-dir=/x",
			want: "configuration: proxy.listen and disk.dir are the same (proxy.listen is set by file FILE:1, disk.dir is set by flag --disk-dir)"},
		{text: "disk:\n  share: 2\nupstream: {hosts: [{}]}\n", want: "disk: share must be from 0 to 1 (share is set by file FILE:2)\n" +
			"upstream.hosts[0]: name is missing: write the registry's host (it is set by file FILE:3)"},
	} {
		o := config.Options{File: write(t, test.text), Env: []string{test.env}}
		if test.flag != "" {
			o.Flags = flags(t, test.flag)
		}
		_, err := config.Load(defaults(), o)
		want := strings.ReplaceAll(test.want, "FILE", o.File)
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %v", err, want)
		}
	}
}

func TestFileErrorTellsWhere(t *testing.T) {
	name := write(t, "proxy:\n  lisen: x\n")
	_, err := config.Load(defaults(), config.Options{File: name})
	var e *config.FileError
	if !errors.As(err, &e) || e.File != name || e.Line != 2 || e.Column != 3 || e.Hint == "" {
		t.Errorf("got %#v", err)
	}
}

func TestFilesThatSetNothing(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "proxy:\n", "proxy: {}\nname: ~\n", "proxy:\n  listen:\n"} {
		got := defaults()
		if _, err := config.Load(got, config.Options{File: write(t, text)}); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if !reflect.DeepEqual(got, defaults()) {
			t.Errorf("%q changed the defaults: %+v", text, got)
		}
	}
}

func TestUnreadableFile(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.yaml")
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, make([]byte, 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		o    config.Options
		want []string
	}{
		{"flag", config.Options{File: missing}, []string{"configuration file " + missing + " (named by flag): file does not exist; create it (`config defaults` prints a complete one) or name another"}},
		{"variable", config.Options{Env: []string{"DAMSELFLY_CONFIG=" + missing}}, []string{missing, "(named by the variable DAMSELFLY_CONFIG)"}},
		{"directory", config.Options{File: dir}, []string{dir, "is a directory", "name a readable YAML file"}},
		{"default directory", config.Options{DefaultFile: dir}, []string{dir, "(the default): it is a directory"}},
		{"large", config.Options{File: large}, []string{large, "larger than 1MiB"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := config.Load(defaults(), test.o)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v does not contain %q", err, want)
				}
			}
		})
	}
	if _, err := config.Load(defaults(), config.Options{DefaultFile: missing}); err != nil {
		t.Errorf("a missing default file: %v", err)
	}
}

// flags returns a parsed set that is bound to a fresh configuration.
func flags(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	if err := config.Bind(set, defaults()); err != nil {
		t.Fatal(err)
	}
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return set
}

func TestPrecedence(t *testing.T) {
	file := write(t, "name: file\nproxy:\n  timeout: 1s\n  tags: [file]\ndisk: {maxBytes: 1KiB}\n")
	other := write(t, "name: other\n")
	env := []string{"DAMSELFLY_NAME=first", "DAMSELFLY_NAME=env", "DAMSELFLY_PROXY_TAGS= x , y", "DAMSELFLY_DISK_MAX_BYTES=2KiB",
		"DAMSELFLY_PROXY_LISTEN=", "DAMSELFLY_CONFIG=" + other, "PATH=/bin", "DAMSELFLY_DISK_SCRUB=true"}
	got := defaults()
	loaded, err := config.Load(got, config.Options{File: file, Env: env,
		Flags: flags(t, "--disk-max-bytes=3KiB", "--disk-share", "0.5", "--proxy-allow=10.0.0.0/8,10.1.0.0/16", "--proxy-allow", "::/0", "--disk-scrub=false")})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"name": "env|env DAMSELFLY_NAME", "proxy.listen": "127.0.0.1:65001|default", "proxy.timeout": "1s|file " + file + ":3",
		"proxy.allow": "[10.0.0.0/8, 10.1.0.0/16, \"::/0\"]|flag --proxy-allow", "proxy.tags": "[x, y]|env DAMSELFLY_PROXY_TAGS",
		"disk.maxBytes": "3KiB|flag --disk-max-bytes", "disk.share": "0.5|flag --disk-share", "disk.scrub": "false|flag --disk-scrub",
	}
	for _, s := range loaded.Settings() {
		if w, ok := want[s.Path]; ok && s.Value+"|"+s.Origin != w {
			t.Errorf("%s is %s|%s, want %s", s.Path, s.Value, s.Origin, w)
		}
		delete(want, s.Path)
	}
	if len(want) > 0 {
		t.Errorf("not among the settings: %v", want)
	}
	if got.Disk.MaxBytes != 3<<10 || !slices.Equal(got.Proxy.Tags, []string{"x", "y"}) || got.Common.Name != "env" {
		t.Errorf("got %+v", got)
	}
	loaded, err = config.Load(defaults(), config.Options{DefaultFile: file, Env: env})
	if err != nil || loaded.File != other {
		t.Errorf("DAMSELFLY_CONFIG does not win over the default file: %v, %v", loaded, err)
	}
}

func TestEnvProblems(t *testing.T) {
	_, err := config.Load(defaults(), config.Options{Env: []string{"DAMSELFLY_DISK_READERS=x", "DAMSELFLY_PROXY_ALLOW=1.2.3.4"}})
	want := `variable DAMSELFLY_PROXY_ALLOW (proxy.allow): netip.ParsePrefix("1.2.3.4"): no '/'` + "\n" +
		`variable DAMSELFLY_DISK_READERS (disk.readers): "x" is not a whole number, such as 8`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %v", err, want)
	}
}

func TestUnknownVariablesWarn(t *testing.T) {
	loaded, err := config.Load(defaults(), config.Options{Env: []string{
		"DAMSELFLY_PROXY_LISTN=:1", "DAMSELFLY_WHATEVER=1",
		"DAMSELFLY_SCHEDULER_SERVICE_HOST=10.0.0.1", "DAMSELFLY_SCHEDULER_PORT=tcp://10.0.0.1:9000",
		"DAMSELFLY_SCHEDULER_PORT_9000_TCP_ADDR=10.0.0.1", "DAMSELFLY_SCHEDULER_PORT_9000_TCP=tcp://10.0.0.1:9000",
		"DAMSELFLY_SCHEDULER_SERVICE_PORT_GRPC=9000",
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"variable DAMSELFLY_PROXY_LISTN is ignored: no setting has that name; did you mean DAMSELFLY_PROXY_LISTEN?",
		"variable DAMSELFLY_WHATEVER is ignored: no setting has that name",
	}
	if !slices.Equal(loaded.Warnings, want) {
		t.Errorf("got %q", loaded.Warnings)
	}
}

// A Service called damselfly-scheduler must not become the setting
// scheduler.port.
func TestServiceLinkIsNoSetting(t *testing.T) {
	var c struct {
		Scheduler struct {
			Port int `yaml:"port"`
		} `yaml:"scheduler"`
	}
	c.Scheduler.Port = 7
	_, err := config.Load(&c, config.Options{Env: []string{"DAMSELFLY_SCHEDULER_PORT=tcp://10.0.0.1:9000"}})
	if err != nil || c.Scheduler.Port != 7 {
		t.Errorf("port %d, error %v", c.Scheduler.Port, err)
	}
	_, err = config.Load(&c, config.Options{Env: []string{"DAMSELFLY_SCHEDULER_PORT=9"}})
	if err != nil || c.Scheduler.Port != 9 {
		t.Errorf("port %d, error %v", c.Scheduler.Port, err)
	}
}
