"""llrflow: one YAML file in; a robust classifier, an honest attack report and a resumable run folder out."""
