package config_test

import (
	"io"
	"strings"
	"testing"

	"github.com/damselfly-p2p/damselfly/pkg/config"
	"github.com/spf13/pflag"
)

func TestFlagHelp(t *testing.T) {
	usage := flags(t).FlagUsages()
	for _, want := range []string{
		"--disk-max-bytes size", "Most bytes to keep (DAMSELFLY_DISK_MAX_BYTES) (default 10GiB)",
		"--proxy-timeout duration", "Longest wait for the first byte (DAMSELFLY_PROXY_TIMEOUT) (default 1m)", "--proxy-tags strings", "(default a,b)",
		"--disk-scrub ", "--disk-readers number", "--disk-share number",
	} {
		if !strings.Contains(usage, want) {
			t.Errorf("help lacks %q:\n%s", want, usage)
		}
	}
	if strings.Contains(usage, "0 means no limit") {
		t.Errorf("help has more than the first sentence:\n%s", usage)
	}
	for _, not := range []string{"token", "hosts", "hidden"} {
		if strings.Contains(usage, "--"+not) || strings.Contains(usage, "-"+not+" ") {
			t.Errorf("help has %q:\n%s", not, usage)
		}
	}
}

func TestFlagRefusesBadValue(t *testing.T) {
	for _, test := range []struct{ arg, want string }{
		{"--disk-max-bytes=lots", `invalid argument "lots" for "--disk-max-bytes" flag: "lots" is not a size: write a number of bytes, or a number and a unit such as 10GiB or 500MB`},
		{"--proxy-allow=10.0.0.0/8,x", `netip.ParsePrefix("x"): no '/'`},
		{"--disk-scrub=maybe", `"maybe" is not a truth value: write true or false`},
	} {
		set := pflag.NewFlagSet("test", pflag.ContinueOnError)
		set.SetOutput(io.Discard)
		if err := config.Bind(set, defaults()); err != nil {
			t.Fatal(err)
		}
		if err := set.Parse([]string{test.arg}); err == nil || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %v", test.arg, err, test.want)
		}
	}
}

func TestBoolFlagNeedsNoValue(t *testing.T) {
	c := defaults()
	if _, err := config.Load(c, config.Options{Flags: flags(t, "--disk-scrub", "--proxy-tags=")}); err != nil {
		t.Fatal(err)
	}
	if !c.Disk.Scrub || len(c.Proxy.Tags) != 0 {
		t.Errorf("got %+v", c)
	}
}

func TestBindRefusesTakenFlag(t *testing.T) {
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	set.String("name", "", "")
	if err := config.Bind(set, defaults()); err == nil || !strings.Contains(err.Error(), "--name") {
		t.Errorf("got %v", err)
	}
}

type recursive struct {
	List []recursive
}

func TestProgrammersMistakes(t *testing.T) {
	for _, test := range []struct {
		dst  any
		want string
	}{
		{nil, "want a pointer to a struct"},
		{node{}, "want a pointer to a struct"},
		{(*node)(nil), "want a pointer to a struct"},
		{&struct{ M map[string]int }{}, "type map[string]int is not supported"},
		{&struct{ P *int }{}, "type *int is not supported"},
		{&struct{ L []struct{ F func() } }{}, "type func() is not supported"},
		{&recursive{}, "contains itself"},
		{&struct {
			A int `yaml:"x"`
			B int `yaml:"x"`
		}{}, "two settings called x"},
		{&struct {
			AbCd int `yaml:"abCd"`
			Ab   struct{ Cd int }
		}{}, "settings abCd and ab.cd would both be DAMSELFLY_AB_CD"},
		{&struct {
			A int `flag:"f"`
			B int `flag:"f"`
		}{}, "settings a and b would both be --f"},
	} {
		if _, err := config.Load(test.dst, config.Options{}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%T: got %v, want %v", test.dst, err, test.want)
		}
	}
}

// Field names become keys the way people write them.
func TestKeysFromFieldNames(t *testing.T) {
	var c struct {
		MaxBytes, CAFile, URL, HTTPTimeout, Dir, ID int
	}
	loaded, err := config.Load(&c, config.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range loaded.Settings() {
		got = append(got, s.Path+" "+s.Env+" "+s.Flag)
	}
	want := "maxBytes DAMSELFLY_MAX_BYTES max-bytes|caFile DAMSELFLY_CA_FILE ca-file|url DAMSELFLY_URL url|" +
		"httpTimeout DAMSELFLY_HTTP_TIMEOUT http-timeout|dir DAMSELFLY_DIR dir|id DAMSELFLY_ID id"
	if strings.Join(got, "|") != want {
		t.Errorf("got %s", strings.Join(got, "|"))
	}
}
