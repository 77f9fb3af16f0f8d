{{/* The blocks for CoreDNS. docs/layouts.md is their source, and a test holds them against it. */}}

{{/* The keys of a server block: every zone with port 53. */}}
{{- define "canal-dns.zoneKeys" -}}
{{- $keys := list -}}
{{- range default (list (default "cluster.local" .Values.config.clusterDomain)) .Values.coredns.zones -}}
{{- $keys = append $keys (printf "%s:53" .) -}}
{{- end -}}
{{- join " " $keys -}}
{{- end -}}

{{/* The forward stanza; `.` has `root` and `back`, CoreDNS's address without canal-dns. */}}
{{- define "canal-dns.forward" }}
    forward . {{ .root.Values.service.clusterIP }} {{ .back }} {
        policy sequential
        max_fails 1
        health_check 500ms
        {{ ternary "failover" "next" .root.Values.coredns.failover }} SERVFAIL REFUSED NOTIMP
    }
{{- if not .root.Values.coredns.failover }}
    forward . {{ .back }}
{{- end }}
{{- end -}}

{{/* Layout B: the one block that is added. */}}
{{- define "canal-dns.layoutB" -}}
{{ include "canal-dns.zoneKeys" . }} {
    view through-canal {
        expr !do() && !(client_ip() in ['127.0.0.1', '::1'])
    }
    errors
{{- include "canal-dns.forward" (dict "root" . "back" "127.0.0.1:53") }}
    prometheus :9153
}
{{- end -}}

{{/* Layout A: the whole Corefile. */}}
{{- define "canal-dns.layoutA" -}}
{{- $domain := default "cluster.local" .Values.config.clusterDomain -}}
{{ include "canal-dns.zoneKeys" . }} {
    errors
{{- include "canal-dns.forward" (dict "root" . "back" "127.0.0.1:8053") }}
    prometheus :9153
}
.:53 {
    errors
    health {
        lameduck 15s
    }
    ready
    prometheus :9153
{{- if .Values.coredns.zones }}
    forward {{ $domain }} 127.0.0.1:8053
{{- end }}
    forward in-addr.arpa 127.0.0.1:8053
    forward ip6.arpa 127.0.0.1:8053
    forward . /etc/resolv.conf {
        max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}
.:8053 {
    errors
    ready
    prometheus :9153
    kubernetes {{ $domain }} in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    forward . /etc/resolv.conf
    cache 30
    loadbalance
}
{{- end -}}

{{/* The Service through which canal-dns reaches CoreDNS in Layouts A (8053) and F (53); `.` has `root` and `port`. */}}
{{- define "canal-dns.plainService" -}}
apiVersion: v1
kind: Service
metadata:
  name: coredns-plain
  namespace: kube-system
spec:
  clusterIP: {{ .root.Values.coredns.plainClusterIP }}
  selector:
    k8s-app: kube-dns
  ports:
    - {name: dns, port: 53, targetPort: {{ .port }}, protocol: UDP}
    - {name: dns-tcp, port: 53, targetPort: {{ .port }}, protocol: TCP}
{{- end -}}

{{/* Single workloads that ask canal-dns themselves: where CoreDNS takes no block and the kubelets' settings are not ours. */}}
{{- define "canal-dns.podDns" -}}
dnsPolicy: None
dnsConfig:
  nameservers: [{{ .Values.service.clusterIP }}]
  searches: [NAMESPACE.svc.{{ default "cluster.local" .Values.config.clusterDomain }}, svc.{{ default "cluster.local" .Values.config.clusterDomain }}, {{ default "cluster.local" .Values.config.clusterDomain }}]
  options: [{name: ndots, value: "5"}]
{{- end -}}
