package node

import (
	"fmt"
	"net"

	"go.uber.org/zap"

	"github.com/damselfly-p2p/damselfly/pkg/config"
)

// warn tells of settings that work, and let in more than they seem to.
func warn(c Config, log *zap.Logger) {
	type listening struct{ setting, address string }
	faces := []listening{
		{"mirror.listen", c.Mirror.Listen}, {"mirror.dockerHubListen", c.Mirror.DockerHub}, {"proxy.listen", c.Proxy.Listen},
	}
	for i, r := range c.Mirror.Registries {
		faces = append(faces, listening{fmt.Sprintf("mirror.registries[%d].listen", i), r.Listen})
	}
	for _, f := range faces {
		if everywhere(f.address) {
			log.Warn("listening on all interfaces: whoever reaches this address pulls what this node may pull without a credential; 127.0.0.1 serves this machine alone",
				zap.String("setting", f.setting), zap.String("address", f.address))
		}
	}
	for _, hint := range c.Hints() {
		log.Info(hint)
	}
	if len(c.Scheduler) > 0 {
		config.WarnExposed(log, "joinTokenFile", c.TokenFile)
	}
}

// Hints are what works, and surprises who has a private registry.
func (c Config) Hints() []string {
	if len(c.Origin.Hosts)+len(c.Origin.Allow)+len(c.Mirror.Registries)+len(c.Proxy.Intercept) > 0 {
		return nil
	}
	return []string{"no registry is listed, so those at private addresses are refused; list yours under origin.hosts, on nodes and seeds"}
}

// everywhere tells whether a listener at address is reached by every interface.
func everywhere(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}
