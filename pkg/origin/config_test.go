package origin

import (
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestConfigValidate(t *testing.T) {
	good := []Config{
		{}, DefaultConfig(),
		{Hosts: []Host{{Name: "docker.io"}, {Name: "r.example:5000", Endpoint: "http://10.0.0.1:5000/prefix/"}, {Name: "l", Endpoint: "http://localhost:5000"}}},
		{Allow: []string{"127.0.0.0/8", "::1", "fe80::/10"}, Proxy: "http://proxy.example:3128"},
		{Proxy: "none"}, {Proxy: "socks5://proxy.example"},
	}
	for _, c := range good {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for want, c := range map[string]Config{
		"hosts[0]":      {Hosts: []Host{{Name: "http://r.example"}}},
		"no query":      {Hosts: []Host{{Name: "r.example", Endpoint: "https://r.example/?x=1"}}},
		"scheme":        {Hosts: []Host{{Name: "r.example", Endpoint: "r.example:5000"}}},
		"user name":     {Hosts: []Host{{Name: "r.example", Endpoint: "https://u:p@r.example"}}},
		"listed twice":  {Hosts: []Host{{Name: "docker.io"}, {Name: "index.docker.io"}}},
		"allow[1]":      {Allow: []string{"10.0.0.0/8", "loopback"}},
		"proxy":         {Proxy: "proxy.example:3128"},
		"stallTimeout":  {StallTimeout: -time.Second},
		"answerTimeout": {AnswerTimeout: -time.Second},
		"give both":     {Hosts: []Host{{Name: "r.example", CertFile: "/x"}}},
		"maxSkip":       {MaxSkip: -1},
		"maxRequests":   {MaxRequests: -1},
		"maxRetryAfter": {MaxRetryAfter: -1},
	} {
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := New(c, zap.NewNop(), nil); err == nil {
			t.Errorf("%s: New takes it", want)
		}
	}
}
