"""A whole study on disk: its layout, its status, the gate, the plan and the doctor."""
